/* Preloaded: counts what torch's allocator of CPU memory, which is in libc10, holds over all threads
 * of a process. What operators take for themselves, such as oneDNN's, is left out. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ALIGNMENT 64 /* of torch's memory; its large blocks begin at a page */
#define SLOTS (1u << 20) /* of blocks held at once; a power of 2 */

extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static struct { void *block; size_t size; } slots[SLOTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t held, peak;

static unsigned home(void *block) {
  return (unsigned)(((uintptr_t)block >> 6) * 2654435761u) & (SLOTS - 1);
}

size_t count_memory_held(void) { return held; }

size_t count_memory_peak(void) { return peak; }

void count_memory_reset_peak(void) { peak = held; }

static int is_torch(void *caller) {
  static __thread void *torch, *other; /* the newest callers */
  if (caller == torch) return 1;
  if (caller == other) return 0;
  Dl_info info;
  int found = dladdr(caller, &info) && strstr(info.dli_fname, "libc10.so");
  *(found ? &torch : &other) = caller;
  return found;
}

int posix_memalign(void **result, size_t alignment, size_t size) {
  void *block = __libc_memalign(alignment, size);
  if (!block) return ENOMEM;
  *result = block;
  if (alignment % ALIGNMENT || !is_torch(__builtin_return_address(0))) return 0;
  pthread_mutex_lock(&lock);
  unsigned i = home(block);
  while (slots[i].block) i = (i + 1) & (SLOTS - 1);
  slots[i].block = block;
  slots[i].size = size;
  held += size;
  if (held > peak) peak = held;
  pthread_mutex_unlock(&lock);
  return 0;
}

void free(void *block) {
  if (block && (uintptr_t)block % ALIGNMENT == 0) {
    pthread_mutex_lock(&lock);
    unsigned i = home(block);
    while (slots[i].block && slots[i].block != block) i = (i + 1) & (SLOTS - 1);
    if (slots[i].block) {
      held -= slots[i].size;
      /* Move up what was placed after it, so that no search ends at the gap. */
      for (unsigned next = (i + 1) & (SLOTS - 1); slots[next].block; next = (next + 1) & (SLOTS - 1)) {
        unsigned wanted = home(slots[next].block);
        if (((next - wanted) & (SLOTS - 1)) < ((next - i) & (SLOTS - 1))) continue;
        slots[i] = slots[next];
        i = next;
      }
      slots[i].block = NULL;
    }
    pthread_mutex_unlock(&lock);
  }
  __libc_free(block);
}

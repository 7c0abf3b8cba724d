# Starts a worker's command under the agent, with the image's own Python; where there is none that is
# new enough, the command alone. Run by the agent image's own shell, as an image may have none:
# busybox sh start.sh WORKER_DIR ARGV...
directory=$1
shift
for python in python3 python; do
    if "$python" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
        exec "$python" -I -S "${0%/*}/trainyard_agent/__main__.py" "$directory" - "$@"
    fi
done
echo "trainyard: no Python 3.8 or newer in this image: ranks and progress are not reported" >&2
mkdir -p "$directory"
exec "$@"

// Command cri asks a node's container runtime for what kubectl can't: whether it is ready, to pull an image now, to remove all pods.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg"
)

const usage = "usage: cri --endpoint unix:///run/containerd.sock ready | pull IMAGE | remove-pods"

func main() {
	endpoint := flag.String("endpoint", "", "socket `address` of the container runtime")
	timeout := flag.Duration("timeout", 15*time.Minute, "give up after this long")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	var err error
	switch {
	case *endpoint == "":
		err = errors.New(usage)
	case flag.NArg() == 2 && flag.Arg(0) == "pull":
		err = pull(ctx, *endpoint, *timeout, flag.Arg(1))
	case flag.NArg() == 1 && flag.Arg(0) == "ready":
		// Connecting asks for the runtime's version, which it refuses until it has found its pods again.
		_, err = cri.NewRemoteRuntimeService(ctx, *endpoint, *timeout, noop.NewTracerProvider(), false)
	case flag.NArg() == 1 && flag.Arg(0) == "remove-pods":
		err = removePods(ctx, *endpoint, *timeout)
	default:
		err = errors.New(usage)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
}

// pull fetches the image as the kubelet would.
func pull(ctx context.Context, endpoint string, timeout time.Duration, image string) error {
	images, err := cri.NewRemoteImageService(ctx, endpoint, timeout, noop.NewTracerProvider(), false)
	if err != nil {
		return err
	}
	ref, err := images.PullImage(ctx, &runtimeapi.ImageSpec{Image: image}, nil, nil)
	if err == nil {
		fmt.Println(ref)
	}
	return err
}

// removePods stops and removes every pod of the node, all at the same time.
func removePods(ctx context.Context, endpoint string, timeout time.Duration) error {
	runtime, err := cri.NewRemoteRuntimeService(ctx, endpoint, timeout, noop.NewTracerProvider(), false)
	if err != nil {
		return err
	}
	pods, err := runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return err
	}
	failures := make([]error, len(pods))
	var group sync.WaitGroup
	for i, pod := range pods {
		group.Go(func() {
			if err := runtime.StopPodSandbox(ctx, pod.Id); err != nil {
				failures[i] = err
				return
			}
			failures[i] = runtime.RemovePodSandbox(ctx, pod.Id)
		})
	}
	group.Wait()
	return errors.Join(failures...)
}

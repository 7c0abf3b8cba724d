// Command volumes is the cluster's volume provisioner: a claim becomes a directory that every node sees.
//
// It is the out-of-tree provisioner library of Kubernetes SIG Storage with a directory as its back end. It runs on the
// machine itself, where all nodes of the cluster share one file system, so ReadWriteMany holds across nodes, no helper
// pod is needed, and a lost node does not hold up a claim.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const provisionerName = "trainyard.dev/shared-directory"

// directories provisions volumes as sub-directories of root.
type directories struct{ root string }

// path is where the volume of that name lives; names come from the API server (pvc-UID), but are checked all the same.
func (d directories) path(volume string) (string, error) {
	if volume == "" || volume != filepath.Base(volume) || volume[0] == '.' {
		return "", fmt.Errorf("volume name %q is not a plain directory name", volume)
	}
	return filepath.Join(d.root, volume), nil
}

func (d directories) Provision(_ context.Context, o controller.ProvisionOptions) (*v1.PersistentVolume, controller.ProvisioningState, error) {
	if o.PVC.Spec.Selector != nil {
		return nil, controller.ProvisioningFinished, fmt.Errorf("claims with a selector are not supported by this storage class")
	}
	if o.PVC.Spec.VolumeMode != nil && *o.PVC.Spec.VolumeMode != v1.PersistentVolumeFilesystem {
		return nil, controller.ProvisioningFinished, fmt.Errorf("only volumeMode Filesystem is supported by this storage class")
	}
	path, err := d.path(o.PVName)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	if err := os.MkdirAll(path, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	// Pods run as any user id, and hostPath volumes take no fsGroup: open to all, as the umask would not have it.
	if err := os.Chmod(path, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	kind := v1.HostPathDirectory
	return &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName},
		Spec: v1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *o.StorageClass.ReclaimPolicy,
			AccessModes:                   o.PVC.Spec.AccessModes,
			MountOptions:                  o.StorageClass.MountOptions,
			Capacity:                      v1.ResourceList{v1.ResourceStorage: o.PVC.Spec.Resources.Requests[v1.ResourceStorage]},
			PersistentVolumeSource: v1.PersistentVolumeSource{
				HostPath: &v1.HostPathVolumeSource{Path: path, Type: &kind},
			},
		},
	}, controller.ProvisioningFinished, nil
}

func (d directories) Delete(_ context.Context, volume *v1.PersistentVolume) error {
	path, err := d.path(volume.Name)
	if err != nil {
		return err
	}
	return os.RemoveAll(path)
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig `file` of the cluster")
	root := flag.String("root", "", "`directory` that holds the volumes")
	flag.Parse()
	if *kubeconfig == "" || *root == "" {
		fmt.Fprintln(os.Stderr, "volumes: --kubeconfig and --root are required")
		os.Exit(2)
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Fatalf("volumes: %v", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		klog.Fatalf("volumes: %v", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	controller.NewProvisionController(
		ctx, client, provisionerName, directories{root: *root}, controller.LeaderElection(false),
	).Run(ctx)
}

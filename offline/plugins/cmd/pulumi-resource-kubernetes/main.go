// pulumi-resource-kubernetes serves Kubernetes objects to Pulumi on machines that cannot download the released
// plugin: any kind, by server-side apply, with the released plugin's state, diffs and waits.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/pulumi/pulumi/sdk/v3/go/pulumi/provider"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"k8s.io/klog/v2"
)

// The release whose behaviour this plugin has.
const version = "4.32.0"

func main() {
	// client-go reports every failed watch on stderr, which the engine would show as the program's own trouble.
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)

	err := provider.Main("kubernetes", func(host *provider.HostClient) (pulumirpc.ResourceProviderServer, error) {
		return newServer(host), nil
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "pulumi-resource-kubernetes:", err)
		os.Exit(1)
	}
}

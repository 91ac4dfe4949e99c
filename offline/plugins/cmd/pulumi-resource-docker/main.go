// pulumi-resource-docker serves the resources of pulumi-docker that the program uses, on machines that cannot download
// the released plugin.
package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi/provider"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
)

func main() {
	err := provider.Main("docker", func(host *provider.HostClient) (pulumirpc.ResourceProviderServer, error) {
		return server{plugin.NewProviderServer(newDocker(host))}, nil
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "pulumi-resource-docker:", err)
		os.Exit(1)
	}
}

// server completes what the SDK's server says of a diff: that it is detailed, and which properties it is in.
type server struct {
	pulumirpc.ResourceProviderServer
}

func (s server) Diff(ctx context.Context, req *pulumirpc.DiffRequest) (*pulumirpc.DiffResponse, error) {
	resp, err := s.ResourceProviderServer.Diff(ctx, req)
	if err != nil {
		return nil, err
	}
	resp.HasDetailedDiff = len(resp.DetailedDiff) > 0
	for _, paths := range []*[]string{&resp.Diffs, &resp.Replaces} {
		for i, path := range *paths {
			(*paths)[i] = property(path)
		}
		slices.Sort(*paths)
		*paths = slices.Compact(*paths)
	}
	return resp, nil
}

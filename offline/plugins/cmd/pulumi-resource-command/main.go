// pulumi-resource-command serves the resources of pulumi-command that the program uses, on machines that cannot
// download the released plugin.
package main

import (
	"context"
	"fmt"
	"os"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"
)

// The release whose behaviour this plugin has.
const version = "1.2.1"

func provider() p.Provider {
	prov := infer.Provider(infer.Options{Resources: []infer.InferredResource{
		infer.Resource(localCommand{}),
		infer.Resource(remoteCommand{}),
	}})
	check := prov.Check
	prov.Check = func(ctx context.Context, req p.CheckRequest) (p.CheckResponse, error) {
		switch t := req.Urn.Type(); t {
		case "command:local:Command", "command:remote:Command":
			return check(ctx, req)
		default:
			return p.CheckResponse{}, fmt.Errorf(
				"the offline command plugin does not serve %s: the released plugin pulumi-command %s has it", t, version)
		}
	}
	prov.Invoke = func(_ context.Context, req p.InvokeRequest) (p.InvokeResponse, error) {
		return p.InvokeResponse{}, fmt.Errorf(
			"the offline command plugin does not serve %s: the released plugin pulumi-command %s has it", req.Token, version)
	}
	return prov
}

func main() {
	if err := p.RunProvider(context.Background(), "command", version, provider()); err != nil {
		fmt.Fprintln(os.Stderr, "pulumi-resource-command:", err)
		os.Exit(1)
	}
}

// Package plugintest runs a provider plugin as the Pulumi engine does: as a process of its own, over gRPC.
package plugintest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/diag/colors"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"github.com/pulumi/pulumi/sdk/v3/go/common/tokens"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Plugin is a running plugin and what it logged.
type Plugin struct {
	plugin.Provider
	t   *testing.T
	mu  sync.Mutex
	log strings.Builder
}

// binary is the plugin under test.
var binary string

// Main builds the plugin in the tests' own directory and runs the tests. PLUGINS_UNDER_TEST names a directory with
// plugins to test instead: the released ones, to see that they pass the same tests.
func Main(m *testing.M) int {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	if given := os.Getenv("PLUGINS_UNDER_TEST"); given != "" {
		binary = filepath.Join(given, filepath.Base(dir))
		return m.Run()
	}
	out, err := os.MkdirTemp("", "plugintest-*")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(out)
	binary = filepath.Join(out, filepath.Base(dir))
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "go build:", err)
		return 1
	}
	return m.Run()
}

// Start starts the plugin.
func Start(t *testing.T) *Plugin {
	t.Helper()
	dir := t.TempDir()
	p := &Plugin{t: t}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pulumirpc.RegisterEngineServer(server, &engine{plugin: p})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)

	sink := diag.DefaultSink(writer{p}, writer{p}, diag.FormatOptions{Color: colors.Never})
	ctx, err := plugin.NewContextWithHost(
		context.Background(), sink, sink, host{addr: listener.Addr().String()}, dir, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p.Provider, err = plugin.NewProviderFromPath(host{addr: listener.Addr().String()}, ctx, binary); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Close()
		if t.Failed() {
			t.Logf("the plugin logged:\n%s", p.Log())
		}
	})
	return p
}

// Log returns what the plugin has logged to the engine so far.
func (p *Plugin) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// Use configures the plugin as the engine does for a provider resource.
func (p *Plugin) Use(name string, config resource.PropertyMap) error {
	token, id := tokens.Type("pulumi:providers:"+name), resource.ID("id")
	urn := resource.NewURN("test", "plugintest", "", token, "default")
	checked, err := p.CheckConfig(context.Background(), plugin.CheckConfigRequest{
		URN: urn, Name: "default", Type: token, News: config, AllowUnknowns: true,
	})
	if err != nil {
		return err
	}
	if len(checked.Failures) > 0 {
		return fmt.Errorf("check: %v", checked.Failures)
	}
	_, err = p.Configure(context.Background(), plugin.ConfigureRequest{
		URN: &urn, Name: ptr("default"), Type: &token, ID: &id, Inputs: checked.Properties,
	})
	return err
}

// Resource is one resource's life, step by step.
type Resource struct {
	Plugin  *Plugin
	URN     resource.URN
	ID      resource.ID
	Inputs  resource.PropertyMap // as checked
	Outputs resource.PropertyMap
}

// Resource names a resource that does not exist yet.
func (p *Plugin) Resource(token tokens.Type, name string) *Resource {
	return &Resource{Plugin: p, URN: resource.NewURN("test", "plugintest", "", token, name)}
}

// Check returns the inputs as the plugin completes them.
func (r *Resource) Check(inputs resource.PropertyMap) (resource.PropertyMap, []plugin.CheckFailure, error) {
	resp, err := r.Plugin.Check(context.Background(), plugin.CheckRequest{
		URN: r.URN, Name: r.URN.Name(), Type: r.URN.Type(), Olds: r.Inputs, News: inputs, AllowUnknowns: true,
		RandomSeed: bytes.Repeat([]byte{7}, 32),
	})
	return resp.Properties, resp.Failures, err
}

// Checked is Check for inputs that must be right.
func (r *Resource) Checked(inputs resource.PropertyMap) resource.PropertyMap {
	r.Plugin.t.Helper()
	checked, failures, err := r.Check(inputs)
	if err != nil || len(failures) > 0 {
		r.Plugin.t.Fatalf("check: %v %v", err, failures)
	}
	return checked
}

// Preview returns the outputs that a preview of the creation shows.
func (r *Resource) Preview(inputs resource.PropertyMap) resource.PropertyMap {
	r.Plugin.t.Helper()
	resp, err := r.Plugin.Create(context.Background(), plugin.CreateRequest{
		URN: r.URN, Name: r.URN.Name(), Type: r.URN.Type(), Properties: r.Checked(inputs), Preview: true,
	})
	if err != nil {
		r.Plugin.t.Fatalf("preview: %v", err)
	}
	return resp.Properties
}

// Create makes the resource.
func (r *Resource) Create(inputs resource.PropertyMap) error {
	r.Plugin.t.Helper()
	r.Inputs = r.Checked(inputs)
	resp, err := r.Plugin.Create(context.Background(), plugin.CreateRequest{
		URN: r.URN, Name: r.URN.Name(), Type: r.URN.Type(), Properties: r.Inputs, Timeout: 120,
	})
	r.ID, r.Outputs = resp.ID, resp.Properties
	return err
}

// Diff says what new inputs would change.
func (r *Resource) Diff(inputs resource.PropertyMap) plugin.DiffResult {
	r.Plugin.t.Helper()
	resp, err := r.Plugin.Diff(context.Background(), plugin.DiffRequest{
		URN: r.URN, Name: r.URN.Name(), Type: r.URN.Type(), ID: r.ID,
		OldInputs: r.Inputs, OldOutputs: r.Outputs, NewInputs: r.Checked(inputs), AllowUnknowns: true,
	})
	if err != nil {
		r.Plugin.t.Fatalf("diff: %v", err)
	}
	return resp
}

// Update changes the resource in place.
func (r *Resource) Update(inputs resource.PropertyMap) error {
	r.Plugin.t.Helper()
	checked := r.Checked(inputs)
	resp, err := r.Plugin.Update(context.Background(), plugin.UpdateRequest{
		URN: r.URN, Name: r.URN.Name(), Type: r.URN.Type(), ID: r.ID,
		OldInputs: r.Inputs, OldOutputs: r.Outputs, NewInputs: checked, Timeout: 120,
	})
	if err == nil {
		r.Inputs, r.Outputs = checked, resp.Properties
	}
	return err
}

// Refresh reads the resource again and says whether it still exists.
func (r *Resource) Refresh() bool {
	r.Plugin.t.Helper()
	resp, err := r.Plugin.Read(context.Background(), plugin.ReadRequest{
		URN: r.URN, Name: r.URN.Name(), Type: r.URN.Type(), ID: r.ID, Inputs: r.Inputs, State: r.Outputs,
	})
	if err != nil {
		r.Plugin.t.Fatalf("read: %v", err)
	}
	if resp.ID == "" || resp.Outputs == nil {
		return false
	}
	r.Outputs = resp.Outputs
	if resp.Inputs != nil {
		r.Inputs = resp.Inputs
	}
	return true
}

// Delete removes the resource.
func (r *Resource) Delete() error {
	_, err := r.Plugin.Delete(context.Background(), plugin.DeleteRequest{
		URN: r.URN, Name: r.URN.Name(), Type: r.URN.Type(), ID: r.ID, Inputs: r.Inputs, Outputs: r.Outputs, Timeout: 120,
	})
	return err
}

// Map makes a property map of plain values.
func Map(values map[string]any) resource.PropertyMap { return resource.NewPropertyMapFromMap(values) }

type writer struct{ p *Plugin }

func (w writer) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.p.log.Write(b)
}

type engine struct {
	pulumirpc.UnimplementedEngineServer
	plugin *Plugin
}

func (e *engine) Log(_ context.Context, req *pulumirpc.LogRequest) (*emptypb.Empty, error) {
	_, _ = writer{e.plugin}.Write([]byte(req.Message + "\n"))
	return &emptypb.Empty{}, nil
}

// host is as much of an engine as a provider needs.
type host struct {
	plugin.Host
	addr string
}

func (h host) ServerAddr() string                                   { return h.addr }
func (h host) Loader(*plugin.Context) (*plugin.GrpcServer, error)   { return nil, nil }
func (h host) Mapper(*plugin.Context) (*plugin.GrpcServer, error)   { return nil, nil }
func (h host) Resolver(*plugin.Context) (*plugin.GrpcServer, error) { return nil, nil }
func (h host) AttachDebugger(plugin.DebugSpec) bool                 { return false }
func (h host) Log(diag.Severity, resource.URN, string, int32)       {}
func (h host) LogStatus(diag.Severity, resource.URN, string, int32) {}

func ptr[T any](v T) *T { return &v }

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/blang/semver"
	"github.com/docker/docker/client"
	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"github.com/pulumi/pulumi/sdk/v3/go/common/tokens"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi/provider"
)

// The release whose behaviour this plugin has.
var version = semver.MustParse("5.1.0")

// notServed is what the program hears about everything that is left to the released plugin.
func notServed(what string) string {
	return fmt.Sprintf("the offline docker plugin does not serve %s: the released plugin pulumi-docker %s has it", what, version)
}

// The released plugin gives an operation that long unless customTimeouts says otherwise.
const defaultTimeout = 20 * time.Minute

// object is one of the Docker engine's objects. Its fields are the resource's inputs; the tags say what a change of one
// means (see inputs.go).
type object interface {
	// create makes the object, or leaves nothing.
	create(context.Context, *docker) (id string, err error)
	// read returns the outputs that only the engine knows, and the inputs that may have drifted; nil: it is gone.
	read(context.Context, *docker, string) (map[string]any, error)
	// update applies the inputs that changed.
	update(ctx context.Context, d *docker, id string, changed []string) error
	remove(context.Context, *docker, string) error
}

// kind is a resource type.
type kind struct {
	new func() object
	// Outputs that only a created object has.
	computed []resource.PropertyKey
	// Two of them cannot exist side by side, whatever their names.
	deleteBeforeReplace bool
	// The released plugin's version of the state, so that it can take a stack over.
	schema string
}

var kinds = map[tokens.Type]kind{
	"docker:index/network:Network": {new: func() object { return &network{} }, schema: "1",
		computed: []resource.PropertyKey{"driver", "internal", "ipamConfigs", "options", "scope"}},
	"docker:index/volume:Volume": {new: func() object { return &volume{} }, schema: "1",
		computed: []resource.PropertyKey{"driver", "mountpoint"}},
	"docker:index/container:Container": {new: func() object { return &container{} }, schema: "2",
		deleteBeforeReplace: true,
		computed: []resource.PropertyKey{"bridge", "command", "containerLogs", "entrypoints", "envs", "exitCode",
			"healthcheck", "hostname", "init", "ipcMode", "labels", "logDriver", "networkDatas", "platform", "runtime",
			"securityOpts", "shmSize", "stopSignal", "stopTimeout"}},
}

const imageToken = "docker:index/image:Image"

// config is the provider resource's inputs.
type config struct {
	Host         string         `json:"host"`
	RegistryAuth []registryAuth `json:"registryAuth"`
}

type registryAuth struct {
	Address  string `json:"address" prop:"required"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// docker is the provider.
type docker struct {
	plugin.UnimplementedProvider
	*client.Client
	host   *provider.HostClient
	config config
	// Done when the engine cancels the run.
	running context.Context
	cancel  context.CancelFunc
}

func newDocker(host *provider.HostClient) *docker {
	d := &docker{host: host}
	d.running, d.cancel = context.WithCancel(context.Background())
	return d
}

// Handshake leaves secrets to the engine, as the released plugin does: it marks an output when the input of the same
// name is secret.
func (d *docker) Handshake(
	context.Context, plugin.ProviderHandshakeRequest,
) (*plugin.ProviderHandshakeResponse, error) {
	return &plugin.ProviderHandshakeResponse{SupportsAutonamingConfiguration: true}, nil
}

func (d *docker) GetPluginInfo(context.Context) (plugin.PluginInfo, error) {
	return plugin.PluginInfo{Version: &version}, nil
}

func (d *docker) GetSchema(context.Context, plugin.GetSchemaRequest) (plugin.GetSchemaResponse, error) {
	return plugin.GetSchemaResponse{Schema: []byte(`{"name":"docker","version":"` + version.String() + `"}`)}, nil
}

func (d *docker) Close() error { return nil }

func (d *docker) SignalCancellation(context.Context) error {
	d.cancel()
	return nil
}

// operation bounds one operation: by the run, and by its timeout.
func (d *docker) operation(ctx context.Context, seconds float64) (context.Context, context.CancelFunc) {
	timeout := defaultTimeout
	if seconds > 0 {
		timeout = time.Duration(seconds * float64(time.Second))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	stop := context.AfterFunc(d.running, cancel)
	return ctx, func() { stop(); cancel() }
}

func (d *docker) CheckConfig(_ context.Context, req plugin.CheckConfigRequest) (plugin.CheckConfigResponse, error) {
	news := req.News.Copy()
	// Structured values reach a provider resource as JSON text.
	if auth := news["registryAuth"]; auth.IsString() {
		var parsed any
		if err := json.Unmarshal([]byte(auth.StringValue()), &parsed); err != nil {
			return plugin.CheckConfigResponse{}, fmt.Errorf("registryAuth: %w", err)
		}
		news["registryAuth"] = resource.NewPropertyValue(parsed)
	}
	delete(news, "version")
	_, failures := checkInputs(news, &config{})
	return plugin.CheckConfigResponse{Properties: req.News, Failures: failures}, nil
}

func (d *docker) DiffConfig(_ context.Context, req plugin.DiffConfigRequest) (plugin.DiffConfigResponse, error) {
	return diffInputs(req.OldInputs, req.NewInputs, &config{}), nil
}

// Configure connects to the Docker engine: without one the released plugin does not start either.
func (d *docker) Configure(ctx context.Context, req plugin.ConfigureRequest) (plugin.ConfigureResponse, error) {
	inputs := req.Inputs.Copy()
	if auth := inputs["registryAuth"]; auth.IsString() {
		if err := json.Unmarshal([]byte(auth.StringValue()), &d.config.RegistryAuth); err != nil {
			return plugin.ConfigureResponse{}, fmt.Errorf("registryAuth: %w", err)
		}
		delete(inputs, "registryAuth")
	}
	for k, v := range inputs {
		if v.ContainsUnknowns() { // of a provider that is itself still to be created
			delete(inputs, k)
		}
	}
	if err := decode(inputs, &d.config); err != nil {
		return plugin.ConfigureResponse{}, err
	}
	host := d.config.Host
	if host == "" {
		host = os.Getenv("DOCKER_HOST")
	}
	if strings.HasPrefix(host, "ssh://") {
		return plugin.ConfigureResponse{}, errors.New(notServed("host " + host))
	}
	options := []client.Opt{client.FromEnv, client.WithAPIVersionNegotiation()}
	if host != "" {
		options = append(options, client.WithHost(host))
	}
	var err error
	if d.Client, err = client.NewClientWithOpts(options...); err != nil {
		return plugin.ConfigureResponse{}, fmt.Errorf("docker:host %q: %w", host, err)
	}
	ctx, cancel := d.operation(ctx, 30)
	defer cancel()
	if _, err := d.Ping(ctx); err != nil {
		return plugin.ConfigureResponse{}, fmt.Errorf("no Docker engine answers at %s (%w): start one, or name another "+
			"with DOCKER_HOST or `pulumi config set docker:host`", d.DaemonHost(), err)
	}
	return plugin.ConfigureResponse{}, nil
}

func (d *docker) Check(ctx context.Context, req plugin.CheckRequest) (plugin.CheckResponse, error) {
	if req.URN.Type() == imageToken {
		return d.checkImage(ctx, req)
	}
	k, ok := kinds[req.URN.Type()]
	if !ok {
		return plugin.CheckResponse{}, errors.New(notServed(string(req.URN.Type())))
	}
	inputs, failures := checkInputs(req.News, k.new())
	if inputs["name"].IsNull() {
		name, err := autoname(req)
		if err != nil {
			failures = append(failures, plugin.CheckFailure{Property: "name", Reason: err.Error()})
		}
		inputs["name"] = resource.NewStringProperty(name)
		setDefaulted(inputs, "name")
	}
	return plugin.CheckResponse{Properties: inputs, Failures: failures}, nil
}

// autoname keeps the name that was generated before, or generates one as the stack's configuration wants it.
func autoname(req plugin.CheckRequest) (string, error) {
	if old := req.Olds["name"]; old.IsString() && isDefaulted(req.Olds, "name") {
		return old.StringValue(), nil
	}
	if a := req.Autonaming; a != nil {
		switch {
		case a.Mode == plugin.AutonamingModeDisabled:
			return "", errors.New("automatic naming is disabled: set the name")
		case a.ProposedName != "":
			return a.ProposedName, nil
		}
	}
	return resource.NewUniqueName(req.RandomSeed, req.URN.Name()+"-", 7, 255, nil)
}

func (d *docker) Diff(_ context.Context, req plugin.DiffRequest) (plugin.DiffResult, error) {
	if req.URN.Type() == imageToken {
		return diffImage(req)
	}
	k := kinds[req.URN.Type()]
	olds := req.OldInputs.Copy()
	// A container that should run and has ended is started again.
	if running := req.OldOutputs["mustRun"]; running.IsBool() && !olds["mustRun"].IsNull() {
		olds["mustRun"] = running
	}
	diff := diffInputs(olds, req.NewInputs, k.new())
	if diff.Replace() {
		// A generated name is generated anew; a chosen one is free only when the old object is gone.
		diff.DeleteBeforeReplace = k.deleteBeforeReplace ||
			!isDefaulted(req.NewInputs, "name") && olds["name"].DeepEquals(req.NewInputs["name"])
	}
	return diff, nil
}

func (d *docker) Create(ctx context.Context, req plugin.CreateRequest) (plugin.CreateResponse, error) {
	ctx, cancel := d.operation(ctx, req.Timeout)
	defer cancel()
	if req.URN.Type() == imageToken {
		outputs, err := d.image(ctx, req.URN, req.Properties, req.Preview)
		return plugin.CreateResponse{ID: imageID(outputs), Properties: outputs, Status: resource.StatusOK}, err
	}
	k := kinds[req.URN.Type()]
	if req.Preview {
		outputs := echo(req.Properties)
		for _, key := range k.computed {
			if outputs[key].IsNull() {
				outputs[key] = resource.MakeComputed(resource.NewStringProperty(""))
			}
		}
		return plugin.CreateResponse{Properties: outputs, Status: resource.StatusOK}, nil
	}
	o := k.new()
	if err := decode(req.Properties, o); err != nil {
		return plugin.CreateResponse{}, err
	}
	ctx = context.WithValue(ctx, urnKey{}, req.URN)
	id, err := o.create(ctx, d)
	if err != nil {
		return plugin.CreateResponse{}, err
	}
	live, err := o.read(ctx, d, id)
	if err == nil && live == nil {
		err = fmt.Errorf("%s is gone right after its creation", id)
	}
	if err != nil {
		// Not tracked is never left: what cannot be read is taken away again.
		return plugin.CreateResponse{}, errors.Join(err, o.remove(context.WithoutCancel(ctx), d, id))
	}
	return plugin.CreateResponse{
		ID: resource.ID(id), Properties: k.outputs(req.Properties, live), Status: resource.StatusOK,
	}, nil
}

func (d *docker) Read(ctx context.Context, req plugin.ReadRequest) (plugin.ReadResponse, error) {
	same := plugin.ReadResult{ID: req.ID, Inputs: req.Inputs, Outputs: req.State}
	if req.URN.Type() == imageToken {
		return plugin.ReadResponse{ReadResult: same, Status: resource.StatusOK}, nil
	}
	k, ok := kinds[req.URN.Type()]
	if !ok {
		return plugin.ReadResponse{}, errors.New(notServed(string(req.URN.Type())))
	}
	if req.Inputs == nil {
		return plugin.ReadResponse{}, errors.New(notServed("the import of existing objects"))
	}
	ctx, cancel := d.operation(ctx, req.Timeout)
	defer cancel()
	o := k.new()
	if err := decode(req.Inputs, o); err != nil {
		return plugin.ReadResponse{}, err
	}
	live, err := o.read(ctx, d, string(req.ID))
	if err != nil || live == nil {
		return plugin.ReadResponse{Status: resource.StatusOK}, err
	}
	inputs := req.Inputs.Copy()
	for key, value := range live {
		if key := resource.PropertyKey(key); !inputs[key].IsNull() {
			inputs[key] = resource.NewPropertyValue(value)
		}
	}
	return plugin.ReadResponse{Status: resource.StatusOK, ReadResult: plugin.ReadResult{
		ID: req.ID, Inputs: inputs, Outputs: k.outputs(inputs, live),
	}}, nil
}

func (d *docker) Update(ctx context.Context, req plugin.UpdateRequest) (plugin.UpdateResponse, error) {
	ctx, cancel := d.operation(ctx, req.Timeout)
	defer cancel()
	if req.URN.Type() == imageToken {
		outputs, err := d.image(ctx, req.URN, req.NewInputs, req.Preview)
		return plugin.UpdateResponse{Properties: outputs, Status: resource.StatusOK}, err
	}
	k := kinds[req.URN.Type()]
	if req.Preview {
		outputs := req.OldOutputs.Copy()
		for key := range req.OldInputs {
			if !slices.Contains(k.computed, key) {
				delete(outputs, key)
			}
		}
		maps.Copy(outputs, echo(req.NewInputs))
		return plugin.UpdateResponse{Properties: outputs, Status: resource.StatusOK}, nil
	}
	o := k.new()
	if err := decode(req.NewInputs, o); err != nil {
		return plugin.UpdateResponse{}, err
	}
	ctx = context.WithValue(ctx, urnKey{}, req.URN)
	var changed []string
	for path := range diffInputs(req.OldInputs, req.NewInputs, o).DetailedDiff {
		changed = append(changed, property(path))
	}
	if err := o.update(ctx, d, string(req.ID), changed); err != nil {
		return plugin.UpdateResponse{}, err
	}
	live, err := o.read(ctx, d, string(req.ID))
	if err == nil && live == nil {
		err = fmt.Errorf("%s is gone: run `pulumi refresh`", req.ID)
	}
	return plugin.UpdateResponse{Properties: k.outputs(req.NewInputs, live), Status: resource.StatusOK}, err
}

func (d *docker) Delete(ctx context.Context, req plugin.DeleteRequest) (plugin.DeleteResponse, error) {
	if req.URN.Type() == imageToken { // an image stays, here and in the registry, as with the released plugin
		return plugin.DeleteResponse{Status: resource.StatusOK}, nil
	}
	k, ok := kinds[req.URN.Type()]
	if !ok {
		return plugin.DeleteResponse{}, errors.New(notServed(string(req.URN.Type())))
	}
	ctx, cancel := d.operation(ctx, req.Timeout)
	defer cancel()
	o := k.new()
	if err := decode(req.Inputs, o); err != nil {
		return plugin.DeleteResponse{}, err
	}
	return plugin.DeleteResponse{Status: resource.StatusOK}, o.remove(ctx, d, string(req.ID))
}

func (d *docker) Invoke(_ context.Context, req plugin.InvokeRequest) (plugin.InvokeResponse, error) {
	return plugin.InvokeResponse{}, errors.New(notServed(string(req.Tok)))
}

// outputs are the inputs and what only the engine knows.
func (k kind) outputs(inputs resource.PropertyMap, live map[string]any) resource.PropertyMap {
	outputs := echo(inputs)
	maps.Copy(outputs, resource.NewPropertyMapFromMap(live))
	outputs["__meta"] = resource.NewStringProperty(`{"schema_version":"` + k.schema + `"}`)
	return outputs
}

type urnKey struct{}

// log tells the user something that stays on the screen, and status something that the next line replaces.
func (d *docker) log(ctx context.Context, severity diag.Severity, urn resource.URN, message string) {
	if d.host != nil {
		_ = d.host.Log(ctx, severity, urn, message)
	}
}

func (d *docker) status(ctx context.Context, urn resource.URN, message string) {
	if d.host != nil && message != "" {
		_ = d.host.LogStatus(ctx, diag.Info, urn, message)
	}
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// config is what a provider resource sets.
type config struct {
	namespace string // for objects that name none

	deleteUnreachable     bool
	skipUpdateUnreachable bool
	patchForce            bool
	upsert                bool
	configMapMutable      bool
	secretMutable         bool
}

// Provider inputs of the released plugin that would silently do nothing here.
var notServed = map[string]string{
	"renderYamlToDirectory": "rendering to YAML files",
	"strictMode":            "strict mode",
}

// checkProvider refuses provider inputs that this plugin cannot serve.
func checkProvider(inputs resource.PropertyMap) []*pulumirpc.CheckFailure {
	var failures []*pulumirpc.CheckFailure
	fail := func(property, what string) {
		failures = append(failures, &pulumirpc.CheckFailure{Property: property, Reason: fmt.Sprintf(
			"the offline kubernetes plugin does not serve %s: leave %s unset, or install the released plugin %s",
			what, property, version)})
	}
	for property, what := range notServed {
		if value := inputs[resource.PropertyKey(property)]; value.IsString() && value.StringValue() != "" &&
			value.StringValue() != "false" || value.IsBool() && value.BoolValue() {
			fail(property, what)
		}
	}
	if value := inputs["enableServerSideApply"]; value.IsString() && value.StringValue() == "false" ||
		value.IsBool() && !value.BoolValue() {
		fail("enableServerSideApply", "client-side apply")
	}
	return failures
}

// diffProvider says what new provider inputs mean for the provider's resources. A cluster has no name of its own: with
// clusterIdentifier the user gives it one, and only a change of that replaces everything; without, another server or
// CA in the kubeconfig does.
func diffProvider(olds, news resource.PropertyMap) (*pulumirpc.DiffResponse, error) {
	diff := olds.Diff(news)
	if diff == nil {
		return &pulumirpc.DiffResponse{Changes: pulumirpc.DiffResponse_DIFF_NONE}, nil
	}
	resp := &pulumirpc.DiffResponse{Changes: pulumirpc.DiffResponse_DIFF_SOME}
	for _, key := range diff.ChangedKeys() {
		resp.Diffs = append(resp.Diffs, string(key))
	}

	const identifier, kubeconfig = "clusterIdentifier", "kubeconfig"
	if diff.Updated(identifier) {
		resp.Replaces = append(resp.Replaces, identifier)
	}
	if diff.Same(identifier) && news.HasValue(identifier) {
		return resp, nil
	}
	locators := []resource.PropertyKey{kubeconfig, "context", "cluster"}
	for _, key := range locators {
		if news[key].ContainsUnknowns() {
			resp.Diffs = []string{string(key)}
			resp.Replaces = append(resp.Replaces, string(key))
			return resp, nil
		}
	}
	oldCluster, err := cluster(olds)
	if err != nil {
		return nil, err
	}
	newCluster, err := cluster(news)
	if err != nil {
		return nil, err
	}
	if oldCluster != nil && newCluster != nil && !reflect.DeepEqual(oldCluster, newCluster) {
		for _, key := range locators {
			if diff.Changed(key) {
				resp.Replaces = append(resp.Replaces, string(key))
			}
		}
	}
	return resp, nil
}

// cluster is the kubeconfig's entry for the cluster in use, nil if there is none.
func cluster(inputs resource.PropertyMap) (*clientcmdapi.Cluster, error) {
	value := inputs["kubeconfig"]
	if value.IsNull() {
		return nil, nil
	}
	contents := ""
	switch {
	case value.IsString():
		contents = value.StringValue()
	case value.IsObject():
		encoded, err := json.Marshal(value.ObjectValue().Mappable())
		if err != nil {
			return nil, fmt.Errorf("kubeconfig: %w", err)
		}
		contents = string(encoded)
	default:
		return nil, fmt.Errorf("kubeconfig: a string or an object is expected, not %s", value.TypeString())
	}
	kubeconfig, err := loadKubeconfig(contents)
	if err != nil {
		return nil, err
	}
	current := kubeconfig.CurrentContext
	if value := inputs["context"]; value.IsString() {
		current = value.StringValue()
	}
	name := ""
	if context := kubeconfig.Contexts[current]; context != nil {
		name = context.Cluster
	}
	if value := inputs["cluster"]; name != "" && value.IsString() {
		name = value.StringValue()
	}
	return kubeconfig.Clusters[name], nil
}

// loadKubeconfig takes the contents of a kubeconfig, or a path to one.
func loadKubeconfig(pathOrContents string) (*clientcmdapi.Config, error) {
	path := pathOrContents
	if home, err := os.UserHomeDir(); err == nil && (path == "~" || strings.HasPrefix(path, "~/")) {
		path = filepath.Join(home, path[1:])
	}
	contents := []byte(pathOrContents)
	if _, err := os.Stat(path); err == nil {
		if contents, err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("kubeconfig: %w", err)
		}
	}
	kubeconfig, err := clientcmd.Load(contents)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: neither a file nor YAML or JSON of the kind Config: %w", err)
	}
	return kubeconfig, nil
}

// settings reads the provider's values as the engine hands them over.
type settings map[string]string

func (s settings) get(name string) string { return s["kubernetes:config:"+name] }

// on reads a switch; a value in the provider goes before the environment's.
func (s settings) on(name, env string) bool {
	if value, ok := s["kubernetes:config:"+name]; ok {
		return value == "true"
	}
	return os.Getenv(env) == "true"
}

// number reads a setting of the client; a value in the provider goes before the environment's.
func (s settings) number(name, env string, otherwise float64) (float64, error) {
	var client map[string]*float64
	if encoded := s.get("kubeClientSettings"); encoded != "" {
		if err := json.Unmarshal([]byte(encoded), &client); err != nil {
			return 0, fmt.Errorf("kubeClientSettings: burst, qps and timeout, each a number, are expected: %w", err)
		}
	}
	if value := client[name]; value != nil {
		return *value, nil
	}
	if value := os.Getenv(env); value != "" {
		parsed, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("%s=%q is not a number", env, value)
		}
		return parsed, nil
	}
	return otherwise, nil
}

// parse reads everything but the way to the cluster.
func (s settings) parse() config {
	return config{
		namespace:             s.get("namespace"),
		deleteUnreachable:     s.on("deleteUnreachable", "PULUMI_K8S_DELETE_UNREACHABLE"),
		skipUpdateUnreachable: s.on("skipUpdateUnreachable", "PULUMI_K8S_SKIP_UPDATE_UNREACHABLE"),
		patchForce:            s.on("enablePatchForce", "PULUMI_K8S_ENABLE_PATCH_FORCE"),
		upsert:                s.on("upsertExistingObjects", "PULUMI_K8S_UPSERT_EXISTING_OBJECTS"),
		configMapMutable:      s.on("enableConfigMapMutable", "PULUMI_K8S_ENABLE_CONFIGMAP_MUTABLE"),
		secretMutable:         s.on("enableSecretMutable", "PULUMI_K8S_ENABLE_SECRET_MUTABLE"),
	}
}

// noCluster is a kubeconfig that leads nowhere. It is no reason to refuse the provider: a preview, and a destroy with
// deleteUnreachable, work without a cluster.
type noCluster struct{ error }

// client reads the way to the cluster, and the namespace that the kubeconfig names. It fails with noCluster if there
// is no usable kubeconfig.
func (s settings) client() (*rest.Config, string, error) {
	burst, err1 := s.number("burst", "PULUMI_K8S_CLIENT_BURST", 120)
	qps, err2 := s.number("qps", "PULUMI_K8S_CLIENT_QPS", 50)
	timeout, err3 := s.number("timeout", "PULUMI_K8S_CLIENT_TIMEOUT", 0)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, "", err
	}

	overrides := &clientcmd.ConfigOverrides{
		CurrentContext: s.get("context"),
		Context:        clientcmdapi.Context{Cluster: s.get("cluster"), Namespace: s.get("namespace")},
	}
	var loader clientcmd.ClientConfig
	if given := s.get("kubeconfig"); given != "" {
		kubeconfig, err := loadKubeconfig(given)
		if err != nil {
			return nil, "", noCluster{err}
		}
		loader = clientcmd.NewDefaultClientConfig(*kubeconfig, overrides)
	} else {
		loader = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			clientcmd.NewDefaultClientConfigLoadingRules(), overrides)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, "", noCluster{err}
	}
	client, err := loader.ClientConfig()
	if err != nil {
		return nil, namespace, noCluster{err}
	}
	client.Burst, client.QPS = int(burst), float32(qps)
	client.Timeout = time.Duration(timeout * float64(time.Second))
	client.UserAgent = "pulumi-kubernetes/" + version
	client.WarningHandler = rest.NoWarnings{}
	return client, namespace, nil
}

package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
)

const kubeconfigText = `
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://SERVER:6443"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u, namespace: ours}}]
current-context: x
`

func kubeconfigFor(server string) string { return strings.ReplaceAll(kubeconfigText, "SERVER", server) }

func TestDiffOfProviders(t *testing.T) {
	unknown := resource.MakeComputed(resource.NewStringProperty(""))
	one, other := kubeconfigFor("one"), kubeconfigFor("other")
	renewed := strings.ReplaceAll(one, "token: t", "token: renewed")
	for name, test := range map[string]struct {
		old, new map[string]any
		diffs    []string
		replaces []string
	}{
		"nothing":                   {old: map[string]any{"kubeconfig": one}, new: map[string]any{"kubeconfig": one}},
		"credentials only":          {old: map[string]any{"kubeconfig": one}, new: map[string]any{"kubeconfig": renewed}, diffs: []string{"kubeconfig"}},
		"another cluster":           {old: map[string]any{"kubeconfig": one}, new: map[string]any{"kubeconfig": other}, diffs: []string{"kubeconfig"}, replaces: []string{"kubeconfig"}},
		"not known yet":             {old: map[string]any{"kubeconfig": one}, new: map[string]any{"kubeconfig": unknown}, diffs: []string{"kubeconfig"}, replaces: []string{"kubeconfig"}},
		"named: another kubeconfig": {old: map[string]any{"clusterIdentifier": "i", "kubeconfig": one}, new: map[string]any{"clusterIdentifier": "i", "kubeconfig": other}, diffs: []string{"kubeconfig"}},
		"named: not known yet":      {old: map[string]any{"clusterIdentifier": "i", "kubeconfig": one}, new: map[string]any{"clusterIdentifier": "i", "kubeconfig": unknown}, diffs: []string{"kubeconfig"}},
		"named anew":                {old: map[string]any{"clusterIdentifier": "i", "kubeconfig": one}, new: map[string]any{"clusterIdentifier": "j", "kubeconfig": one}, diffs: []string{"clusterIdentifier"}, replaces: []string{"clusterIdentifier"}},
		"named for the first time":  {old: map[string]any{"kubeconfig": one}, new: map[string]any{"clusterIdentifier": "j", "kubeconfig": one}, diffs: []string{"clusterIdentifier"}},
	} {
		resp, err := diffProvider(resource.NewPropertyMapFromMap(test.old), resource.NewPropertyMapFromMap(test.new))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !slices.Equal(resp.Diffs, test.diffs) || !slices.Equal(resp.Replaces, test.replaces) {
			t.Errorf("%s: differs %v, replaces %v", name, resp.Diffs, resp.Replaces)
		}
	}
}

func TestProviderInputsNotServedAreRefused(t *testing.T) {
	failures := checkProvider(resource.NewPropertyMapFromMap(map[string]any{
		"renderYamlToDirectory": "out", "enableServerSideApply": "false", "strictMode": true,
		"upsertExistingObjects": "true", "clusterIdentifier": "i", "suppressDeprecationWarnings": true,
	}))
	var refused []string
	for _, failure := range failures {
		refused = append(refused, failure.Property)
	}
	slices.Sort(refused)
	if want := []string{"enableServerSideApply", "renderYamlToDirectory", "strictMode"}; !slices.Equal(refused, want) {
		t.Errorf("refused %v, want %v", refused, want)
	}
	if failures := checkProvider(resource.NewPropertyMapFromMap(map[string]any{
		"enableServerSideApply": "true", "strictMode": "false", "renderYamlToDirectory": "",
	})); len(failures) > 0 {
		t.Errorf("refused: %v", failures)
	}
}

func TestSettings(t *testing.T) {
	t.Setenv("PULUMI_K8S_DELETE_UNREACHABLE", "true")
	t.Setenv("PULUMI_K8S_UPSERT_EXISTING_OBJECTS", "true")
	t.Setenv("PULUMI_K8S_CLIENT_QPS", "7")
	got := settings{
		"kubernetes:config:upsertExistingObjects": "false", "kubernetes:config:enablePatchForce": "true",
	}.parse()
	if want := (config{deleteUnreachable: true, patchForce: true}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}

	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte(kubeconfigFor("h")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, given := range []string{kubeconfigFor("h"), file} {
		client, namespace, err := settings{
			"kubernetes:config:kubeconfig": given, "kubernetes:config:kubeClientSettings": `{"burst": 3}`,
		}.client()
		if err != nil {
			t.Fatal(err)
		}
		if client.Host != "https://h:6443" || namespace != "ours" || client.Burst != 3 || client.QPS != 7 {
			t.Errorf("%s %s %v %v", client.Host, namespace, client.Burst, client.QPS)
		}
	}
	_, namespace, err := settings{
		"kubernetes:config:kubeconfig": file, "kubernetes:config:namespace": "mine",
	}.client()
	if err != nil || namespace != "mine" {
		t.Errorf("namespace %s, %v", namespace, err)
	}

	if _, _, err := (settings{"kubernetes:config:kubeconfig": "no such file"}).client(); !errors.As(err, &noCluster{}) {
		t.Errorf("a broken kubeconfig: %v", err)
	}
	t.Setenv("PULUMI_K8S_CLIENT_QPS", "many")
	if _, _, err := (settings{}).client(); err == nil || errors.As(err, &noCluster{}) ||
		!strings.Contains(err.Error(), "PULUMI_K8S_CLIENT_QPS") {
		t.Errorf("a broken setting: %v", err)
	}
}

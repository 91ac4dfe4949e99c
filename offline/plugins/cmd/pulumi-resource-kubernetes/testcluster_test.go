package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"spdk-k8s/offline/plugins/internal/plugintest"
)

func TestMain(m *testing.M) {
	code := plugintest.Main(m)
	stopCluster()
	os.Exit(code)
}

// testCluster is a real API server and controller manager on loopback. It has one node, whose kubelet is played here.
type testCluster struct {
	kubeconfig string
	client     dynamic.Interface
}

var (
	stopCluster  = func() {}
	startCluster = sync.OnceValues(newCluster)
)

// errNoBinaries skips a test: there is nothing to run a cluster with.
var errNoBinaries = errors.New("no kube-apiserver, kube-controller-manager and etcd in the cache; make up builds them")

// testClusterFor gives the cluster that all tests share.
func testClusterFor(t *testing.T) *testCluster {
	t.Helper()
	c, err := startCluster()
	if errors.Is(err, errNoBinaries) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newCluster() (*testCluster, error) {
	dir, err := os.MkdirTemp("", "testcluster-*")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running []*exec.Cmd
	stopCluster = func() {
		cancel()
		for _, process := range running {
			_ = process.Process.Kill()
			_ = process.Wait()
		}
		_ = os.RemoveAll(dir)
	}
	start := func(name string, arguments ...string) error {
		binary, err := cached(name)
		if err != nil {
			return err
		}
		log, err := os.Create(filepath.Join(dir, name+".log"))
		if err != nil {
			return err
		}
		process := exec.Command(binary, arguments...)
		process.Stdout, process.Stderr = log, log
		process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := process.Start(); err != nil {
			return err
		}
		running = append(running, process)
		return nil
	}

	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	file := func(name, contents string) string {
		path := filepath.Join(dir, name)
		if writeErr := os.WriteFile(path, []byte(contents), 0o600); writeErr != nil {
			err = writeErr
		}
		return path
	}
	keyFile := file("sa.key", string(pem.EncodeToMemory(
		&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	token := rand.Text()
	tokens := file("tokens.csv", token+",admin,admin,system:masters\n")
	etcd, peer, server, manager := freePort(), freePort(), freePort(), freePort()
	address := "https://127.0.0.1:" + server
	kubeconfig := file("kubeconfig", fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q, insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: %s}}]
contexts: [{name: test, context: {cluster: test, user: admin}}]
current-context: test
`, address, token))
	if err != nil {
		return nil, err
	}

	if err := start("etcd", "--data-dir", filepath.Join(dir, "etcd"),
		"--listen-client-urls", "http://127.0.0.1:"+etcd, "--advertise-client-urls", "http://127.0.0.1:"+etcd,
		"--listen-peer-urls", "http://127.0.0.1:"+peer, "--initial-advertise-peer-urls", "http://127.0.0.1:"+peer,
		"--initial-cluster", "default=http://127.0.0.1:"+peer, "--unsafe-no-fsync"); err != nil {
		return nil, err
	}
	if err := start("kube-apiserver", "--etcd-servers", "http://127.0.0.1:"+etcd, "--bind-address", "127.0.0.1",
		"--secure-port", server, "--cert-dir", filepath.Join(dir, "certs"), "--token-auth-file", tokens,
		"--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount",
		"--service-cluster-ip-range", "10.0.0.0/24", "--service-account-issuer", "https://test",
		"--service-account-key-file", keyFile, "--service-account-signing-key-file", keyFile); err != nil {
		return nil, err
	}
	config := &rest.Config{
		Host: address, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{Insecure: true}, QPS: 500, Burst: 500,
	}
	if err := ready(ctx, config, 2*time.Minute); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "kube-apiserver.log"))
		return nil, fmt.Errorf("%w:\n%s", err, log[max(0, len(log)-2000):])
	}
	// The node sends no heartbeats, which that controller would hold against its Pods.
	if err := start("kube-controller-manager", "--kubeconfig", kubeconfig, "--leader-elect=false",
		"--controllers=*,-node-lifecycle-controller",
		"--bind-address", "127.0.0.1", "--secure-port", manager, "--cert-dir", filepath.Join(dir, "certs"),
		"--service-account-private-key-file", keyFile); err != nil {
		return nil, err
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	contents, err := os.ReadFile(kubeconfig)
	c := &testCluster{kubeconfig: string(contents), client: client}
	go c.kubelet(ctx)
	return c, err
}

// cached finds a binary that set-up has put into the cache.
func cached(name string) (string, error) {
	cache := os.Getenv("SPDK_K8S_CACHE")
	if cache == "" {
		cache = filepath.Join(os.Getenv("HOME"), ".cache", "spdk-k8s")
	}
	found, _ := filepath.Glob(filepath.Join(cache, "*", "bin", name))
	if len(found) == 0 {
		return "", errNoBinaries
	}
	slices.Sort(found)
	return found[len(found)-1], nil
}

func freePort() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

// ready waits until the API server says so.
func ready(ctx context.Context, config *rest.Config, limit time.Duration) error {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"/readyz", nil)
		if err != nil {
			return err
		}
		if response, err := client.Do(request); err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the API server was not ready within %s", limit)
		}
	}
}

var (
	nodes        = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	configMaps   = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	namespaces   = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	statefulSets = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "statefulsets"}
)

// kubelet plays the node: Pods become ready, but those whose image is bad never do, and those of done complete.
func (c *testCluster) kubelet(ctx context.Context) {
	_, _ = c.client.Resource(nodes).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": "node"},
	}}, metav1.CreateOptions{})
	c.patch(ctx, "", nodes, "node", "status", `
status:
  allocatable: {cpu: "64", memory: 64Gi, pods: "110"}
  conditions: [{type: Ready, status: "True"}]
`)
	c.patch(ctx, "", nodes, "node", "", `spec: {taints: null}`) // A new node is tainted until it is ready.
	for ctx.Err() == nil {
		list, err := c.client.Resource(pods).List(ctx, metav1.ListOptions{})
		if err == nil {
			for i := range list.Items {
				c.play(ctx, &list.Items[i])
			}
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (c *testCluster) play(ctx context.Context, pod *unstructured.Unstructured) {
	client, name := c.client.Resource(pods).Namespace(pod.GetNamespace()), pod.GetName()
	switch {
	case pod.GetDeletionTimestamp() != nil:
		now := int64(0)
		_ = client.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now})
		return
	case field(pod.Object, "spec", "nodeName") == nil:
		_, _ = client.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "Binding", "metadata": map[string]any{"name": name},
			"target": map[string]any{"kind": "Node", "name": "node"},
		}}, metav1.CreateOptions{}, "binding")
		return
	case field(pod.Object, "status", "containerStatuses") != nil:
		return
	}
	image := text(field(item(field(pod.Object, "spec", "containers").([]any), 0), "image"))
	phase, ready, state, reason := "Running", "True", "running: {}", ""
	switch {
	case strings.HasPrefix(image, "bad"):
		phase, ready, reason = "Pending", "False", "containers with unready status: [c]"
		state = "waiting: {reason: ImagePullBackOff, message: Back-off pulling image}"
	case strings.HasPrefix(image, "done"):
		phase, ready, state = "Succeeded", "False", "terminated: {exitCode: 0, reason: Completed}"
	}
	c.patch(ctx, pod.GetNamespace(), pods, name, "status", fmt.Sprintf(`
status:
  phase: %[1]s
  podIP: 10.1.0.1
  podIPs: [{ip: 10.1.0.1}]
  conditions:
  - {type: PodScheduled, status: "True"}
  - {type: Initialized, status: "True"}
  - {type: ContainersReady, status: %[2]q, message: %[4]q, reason: ContainersNotReady}
  - {type: Ready, status: %[2]q, message: %[4]q, reason: ContainersNotReady}
  containerStatuses: [{name: c, image: %[5]q, imageID: "", restartCount: 0, ready: %[6]v, state: {%[3]s}}]
`, phase, ready, state, reason, image, ready == "True"))
}

func (c *testCluster) patch(
	ctx context.Context, namespace string, resource schema.GroupVersionResource, name, subresource, patch string,
) {
	body, err := yaml.YAMLToJSON([]byte(patch))
	if err != nil {
		panic(err)
	}
	var under []string
	if subresource != "" {
		under = append(under, subresource)
	}
	_, err = c.client.Resource(resource).Namespace(namespace).Patch(
		ctx, name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: "test"}, under...)
	if err != nil && ctx.Err() == nil && subresource == "" {
		panic(err)
	}
}

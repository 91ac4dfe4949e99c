package main_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"

	"spdk-k8s/offline/plugins/internal/plugintest"
)

const (
	imageType     = "docker:index/image:Image"
	networkType   = "docker:index/network:Network"
	volumeType    = "docker:index/volume:Volume"
	containerType = "docker:index/container:Container"
)

var (
	props    = plugintest.Map
	ctx      = context.Background()
	released = os.Getenv("PLUGINS_UNDER_TEST") != ""
)

func TestMain(m *testing.M) { os.Exit(plugintest.Main(m)) }

type m = map[string]any

func with(base, over m) m {
	out := m{}
	for k, v := range base {
		out[k] = v
	}
	for k, v := range over {
		out[k] = v
	}
	return out
}

// start skips the test where no Docker engine answers.
func start(t *testing.T) (*plugintest.Plugin, *client.Client) {
	t.Helper()
	docker, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := docker.Ping(ctx); err != nil {
		t.Skipf("no Docker engine: %v", err)
	}
	p := plugintest.Start(t)
	if err := p.Use("docker", nil); err != nil {
		t.Fatal(err)
	}
	return p, docker
}

func unique(t *testing.T) string {
	return strings.ToLower(fmt.Sprintf("plugintest-%s-%d", t.Name(), time.Now().UnixNano()%1e9))
}

func str(m resource.PropertyMap, key resource.PropertyKey) string {
	if !m[key].IsString() {
		return fmt.Sprint(m[key])
	}
	return m[key].StringValue()
}

func unknown(v resource.PropertyValue) bool {
	return v.IsComputed() || v.IsOutput() && !v.OutputValue().Known
}

// buildContext is a folder with a Dockerfile and the helper.
func buildContext(t *testing.T, dockerfile string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "helper"), "./testdata/helper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	write(t, filepath.Join(dir, "Dockerfile"), dockerfile)
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// helperImage builds an image to run containers from.
func helperImage(t *testing.T, p *plugintest.Plugin, docker *client.Client) string {
	t.Helper()
	name := unique(t) + ":1"
	dir := buildContext(t, "FROM scratch\nCOPY helper /helper\nENTRYPOINT [\"/helper\"]\nCMD [\"sleep\"]\n")
	t.Cleanup(func() { _, _ = docker.ImageRemove(ctx, name, image.RemoveOptions{Force: true}) })
	if err := p.Resource(imageType, "helper").Create(props(m{
		"imageName": name, "skipPush": true,
		"build": m{"context": dir, "dockerfile": filepath.Join(dir, "Dockerfile"), "platform": "linux/amd64"},
	})); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestNoEngine(t *testing.T) {
	p := plugintest.Start(t)
	err := p.Use("docker", props(m{"host": "unix:///nowhere/docker.sock"}))
	if err == nil { // the SDK's client configures in the background
		_, _, err = p.Resource(networkType, "n").Check(props(m{}))
	}
	if err == nil {
		t.Fatal("configured without an engine")
	}
	if !released && !strings.Contains(err.Error(), "no Docker engine answers at unix:///nowhere/docker.sock") {
		t.Errorf("error %v", err)
	}
}

func TestRefused(t *testing.T) {
	if released {
		t.Skip("the released plugin has them")
	}
	p, _ := start(t)
	if _, _, err := p.Resource("docker:index/service:Service", "x").Check(props(m{})); err == nil ||
		!strings.Contains(err.Error(), "docker:index/service:Service") || !strings.Contains(err.Error(), "released") {
		t.Errorf("type: %v", err)
	}
	for path, inputs := range map[string]m{
		"gpus":                    {"image": "i", "gpus": "all"},
		"mounts[0].volumeOptions": {"image": "i", "mounts": []any{m{"type": "volume", "target": "/t", "volumeOptions": m{"noCopy": true}}}},
		"image":                   {},
		"memory":                  {"image": "i", "memory": "much"},
	} {
		_, failures, err := p.Resource(containerType, "x").Check(props(inputs))
		if err != nil || len(failures) != 1 || string(failures[0].Property) != path || !strings.Contains(failures[0].Reason, path) {
			t.Errorf("%s: %v %v", path, failures, err)
		}
	}
}

func TestNetworkAndVolume(t *testing.T) {
	p, docker := start(t)
	n := p.Resource(networkType, "net")
	inputs := m{
		"ipamConfigs": []any{m{"subnet": "10.213.9.0/24", "gateway": "10.213.9.1"}},
		"labels":      []any{m{"label": "a", "value": "1"}, m{"label": "b", "value": "2"}},
	}
	out := n.Preview(props(inputs))
	if !strings.HasPrefix(str(out, "name"), "net-") || !unknown(out["scope"]) {
		t.Errorf("preview: %v", out)
	}
	if err := n.Create(props(inputs)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = docker.NetworkRemove(ctx, string(n.ID)) })
	if str(n.Outputs, "driver") != "bridge" || str(n.Outputs, "scope") != "local" {
		t.Errorf("outputs: %v", n.Outputs)
	}
	if d := n.Diff(props(with(inputs, m{"labels": []any{m{"label": "b", "value": "2"}, m{"label": "a", "value": "1"}}}))); d.Changes != plugin.DiffNone {
		t.Errorf("another order of a set: %+v", d)
	}
	if d := n.Diff(props(with(inputs, m{"internal": true}))); !d.Replace() || d.DeleteBeforeReplace {
		t.Errorf("internal: %+v", d)
	}
	if !n.Refresh() {
		t.Error("refresh lost it")
	}
	if d := n.Diff(props(inputs)); d.Changes != plugin.DiffNone {
		t.Errorf("after refresh: %+v", d)
	}
	if err := docker.NetworkRemove(ctx, string(n.ID)); err != nil {
		t.Fatal(err)
	}
	if n.Refresh() {
		t.Error("refresh finds a network that is gone")
	}
	if err := n.Delete(); err != nil {
		t.Errorf("delete of what is gone: %v", err)
	}

	v := p.Resource(volumeType, "vol")
	name := unique(t)
	if err := v.Create(props(m{"name": name, "labels": []any{m{"label": "a", "value": "1"}}})); err != nil {
		t.Fatal(err)
	}
	if string(v.ID) != name || str(v.Outputs, "driver") != "local" || !strings.Contains(str(v.Outputs, "mountpoint"), name) {
		t.Errorf("volume: %s %v", v.ID, v.Outputs)
	}
	if d := v.Diff(props(m{"name": name})); !d.Replace() || !d.DeleteBeforeReplace {
		t.Errorf("labels: %+v", d)
	}
	if err := v.Delete(); err != nil {
		t.Fatal(err)
	}
	if v.Refresh() {
		t.Error("the volume is still there")
	}
}

func TestContainerLife(t *testing.T) {
	p, docker := start(t)
	img := helperImage(t, p, docker)
	n := p.Resource(networkType, "net")
	if err := n.Create(props(m{"name": unique(t), "ipamConfigs": []any{m{"subnet": "10.213.10.0/24", "gateway": "10.213.10.1"}}})); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Delete() })
	c := p.Resource(containerType, "c")
	inputs := m{
		"image": img, "name": unique(t), "hostname": "master", "restart": "unless-stopped", "cgroupnsMode": "private",
		"capabilities": m{"adds": []any{"CAP_NET_ADMIN"}, "drops": []any{"CAP_MKNOD"}},
		"securityOpts": []any{"seccomp=unconfined"}, "tmpfs": m{"/run": "size=1m"}, "sysctls": m{"net.ipv4.ip_forward": "1"},
		"envs": []any{"A=1", "B=2"}, "ulimits": []any{m{"name": "nofile", "soft": 512.0, "hard": 1024.0}},
		"mounts":  []any{m{"type": "tmpfs", "target": "/mnt", "tmpfsOptions": m{"sizeBytes": 1048576.0}}},
		"volumes": []any{m{"containerPath": "/var/data"}, m{"hostPath": "/etc", "containerPath": "/host-etc", "readOnly": true}},
		"hosts":   []any{m{"host": "registry", "ip": "10.213.10.1"}}, "stopTimeout": 3.0, "shmSize": 32.0, "init": true,
		"networksAdvanced": []any{m{"name": n.Outputs["name"], "ipv4Address": "10.213.10.7", "aliases": []any{"m"}}},
		"uploads": []any{
			m{"file": "/etc/ssh/key", "content": "secret\n", "permissions": "0600"},
			m{"file": "/bin/tool", "contentBase64": base64.StdEncoding.EncodeToString([]byte("#!\n")), "executable": true},
		},
		"labels": []any{m{"label": "l", "value": "v"}},
	}
	preview := c.Preview(props(with(inputs, m{"image": resource.MakeComputed(resource.NewStringProperty(""))})))
	if !unknown(preview["networkDatas"]) || !unknown(preview["image"]) || str(preview, "hostname") != "master" {
		t.Errorf("preview: %v", preview)
	}
	if err := c.Create(props(inputs)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = docker.ContainerRemove(ctx, string(c.ID), container.RemoveOptions{Force: true, RemoveVolumes: true})
	})
	live, err := docker.ContainerInspect(ctx, string(c.ID))
	if err != nil {
		t.Fatal(err)
	}
	if !live.State.Running || live.Config.Hostname != "master" || live.HostConfig.RestartPolicy.Name != "unless-stopped" ||
		live.HostConfig.ShmSize != 32<<20 || fmt.Sprint(live.HostConfig.CapAdd) != "[CAP_NET_ADMIN]" ||
		live.HostConfig.Tmpfs["/run"] != "size=1m" || live.HostConfig.CgroupnsMode != "private" ||
		live.HostConfig.Ulimits[0].Hard != 1024 || len(live.NetworkSettings.Networks) != 1 || len(live.Mounts) != 3 {
		t.Errorf("container: %+v %+v %+v", live.State, live.HostConfig, live.Mounts)
	}
	for file, want := range map[string]os.FileMode{"/etc/ssh/key": 0o600, "/bin/tool": 0o744} {
		stat, err := docker.ContainerStatPath(ctx, string(c.ID), file)
		if err != nil || stat.Mode.Perm() != want {
			t.Errorf("upload %s: %v %v", file, stat, err)
		}
	}
	data := c.Outputs["networkDatas"].ArrayValue()
	if len(data) != 1 || str(data[0].ObjectValue(), "ipAddress") != "10.213.10.7" {
		t.Errorf("networkDatas: %v", data)
	}
	if d := c.Diff(props(with(inputs, m{"envs": []any{"B=2", "A=1"}}))); d.Changes != plugin.DiffNone {
		t.Errorf("another order of envs: %+v", d)
	}
	for key, value := range map[string]any{
		"image": "other:1", "hostname": "x", "envs": []any{"A=2"}, "privileged": true, "networksAdvanced": []any{},
		"uploads": []any{}, "command": []any{"fail"}, "ports": []any{m{"internal": 80.0}},
	} {
		if d := c.Diff(props(with(inputs, m{key: value}))); !d.Replace() || !d.DeleteBeforeReplace {
			t.Errorf("%s: %+v", key, d)
		}
	}

	changed := with(inputs, m{"memory": 64.0, "memorySwap": 64.0, "restart": "always"})
	if d := c.Diff(props(changed)); d.Changes != plugin.DiffSome || d.Replace() {
		t.Errorf("limits: %+v", d)
	}
	if err := c.Update(props(changed)); err != nil {
		t.Fatal(err)
	}
	if live, _ = docker.ContainerInspect(ctx, string(c.ID)); live.HostConfig.Memory != 64<<20 || live.HostConfig.RestartPolicy.Name != "always" {
		t.Errorf("updated: %+v", live.HostConfig)
	}
	if !c.Refresh() {
		t.Error("refresh lost it")
	}
	if d := c.Diff(props(changed)); d.Changes != plugin.DiffNone {
		t.Errorf("after refresh: %+v", d)
	}

	// Stopped behind our back: refresh sees it, the next update starts it.
	if err := docker.ContainerStop(ctx, string(c.ID), container.StopOptions{Timeout: ptr(0)}); err != nil {
		t.Fatal(err)
	}
	if !c.Refresh() || c.Outputs["mustRun"].BoolValue() {
		t.Errorf("a stopped container: %v", c.Outputs["mustRun"])
	}
	if d := c.Diff(props(changed)); d.Changes != plugin.DiffSome || d.Replace() {
		t.Errorf("a stopped container: %+v", d)
	}
	if err := c.Update(props(changed)); err != nil {
		t.Fatal(err)
	}
	if live, _ = docker.ContainerInspect(ctx, string(c.ID)); !live.State.Running {
		t.Error("not started again")
	}

	if err := c.Delete(); err != nil {
		t.Fatal(err)
	}
	if _, err := docker.ContainerInspect(ctx, string(c.ID)); err == nil {
		t.Error("the container is still there")
	}
	for _, v := range live.Mounts {
		if v.Type == "volume" {
			if _, err := docker.VolumeInspect(ctx, v.Name); err == nil {
				t.Errorf("its volume %s is still there", v.Name)
			}
		}
	}
	if c.Refresh() {
		t.Error("refresh finds a container that is gone")
	}
	if err := c.Delete(); err != nil {
		t.Errorf("delete of what is gone: %v", err)
	}
}

func ptr[T any](v T) *T { return &v }

func TestContainerThatCannotStartLeavesNothing(t *testing.T) {
	if released {
		t.Skip("the released plugin leaves it in the stack's state")
	}
	p, docker := start(t)
	img := helperImage(t, p, docker)
	name := unique(t)
	for what, over := range map[string]any{
		"no such program": m{"entrypoints": []any{"/nope"}},
		"no such network": m{"networksAdvanced": []any{m{"name": "there-is-none"}}},
		"no health":       m{"wait": true},
	} {
		err := p.Resource(containerType, "c").Create(props(with(m{"image": img, "name": name}, over.(m))))
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", what, err)
		}
		if _, err := docker.ContainerInspect(ctx, name); err == nil {
			t.Errorf("%s: the container is still there", what)
		}
	}
	if err := p.Resource(containerType, "c").Create(props(m{"image": "there-is-none.invalid/x:1", "name": name})); err == nil ||
		!strings.Contains(err.Error(), "there-is-none.invalid") {
		t.Errorf("image: %v", err)
	}
}

func TestContainerHealthAndExit(t *testing.T) {
	p, docker := start(t)
	img := helperImage(t, p, docker)
	c := p.Resource(containerType, "healthy")
	if err := c.Create(props(m{
		"image": img, "name": unique(t), "wait": true, "waitTimeout": 30.0,
		"uploads":     []any{m{"file": "/state", "content": "good"}},
		"healthcheck": m{"tests": []any{"CMD", "/helper", "is", "/state", "good"}, "interval": "1s", "timeout": "5s"},
	})); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(); err != nil {
		t.Fatal(err)
	}
	once := p.Resource(containerType, "once")
	if err := once.Create(props(m{
		"image": img, "name": unique(t), "mustRun": false, "command": []any{"fail", "bye", "7"},
	})); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = once.Delete() })
	done, failed := docker.ContainerWait(ctx, string(once.ID), container.WaitConditionNotRunning)
	select {
	case <-done:
	case err := <-failed:
		t.Fatal(err)
	}
	if !once.Refresh() || !once.Outputs["exitCode"].IsNumber() || once.Outputs["exitCode"].NumberValue() != 7 {
		t.Errorf("exit code: %v", once.Outputs["exitCode"])
	}
	logs, err := docker.ContainerLogs(ctx, string(once.ID), container.LogsOptions{ShowStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	_, _ = stdcopy.StdCopy(&text, &text, logs)
	if text.String() != "bye\n" {
		t.Errorf("it printed %q", text.String())
	}
}

func TestSecretsAreMarked(t *testing.T) {
	p, docker := start(t)
	img := helperImage(t, p, docker)
	c := p.Resource(containerType, "c")
	inputs := props(m{"image": img, "name": unique(t)})
	inputs["envs"] = resource.MakeSecret(resource.NewArrayProperty([]resource.PropertyValue{resource.NewStringProperty("P=hush")}))
	if err := c.Create(inputs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Delete() })
	if !c.Outputs["envs"].IsSecret() || c.Outputs["networkDatas"].IsSecret() {
		t.Errorf("outputs: %v", c.Outputs)
	}
}

// registryOf is a registry on loopback that wants a login.
func registryOf(t *testing.T) string {
	t.Helper()
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "u" || password != "p" {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}`, http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return listener.Addr().String()
}

func TestImage(t *testing.T) {
	p, docker := start(t)
	addr := registryOf(t)
	name := addr + "/" + unique(t) + ":v1"
	t.Cleanup(func() { _, _ = docker.ImageRemove(ctx, name, image.RemoveOptions{Force: true}) })
	dir := buildContext(t, `ARG STEP=none
FROM scratch AS never
RUN ["/this-stage-is-not-needed"]
FROM scratch AS base
ARG STEP
LABEL step=$STEP
COPY . /
FROM base AS wanted
ENTRYPOINT ["/helper"]
`)
	write(t, filepath.Join(dir, ".dockerignore"), "ignored\n")
	write(t, filepath.Join(dir, "ignored"), "1")
	write(t, filepath.Join(dir, "seen"), "1")
	build := m{
		"context": dir, "dockerfile": filepath.Join(dir, "Dockerfile"), "platform": "linux/amd64",
		"target": "wanted", "args": m{"STEP": "one"},
	}
	login := m{"server": addr, "username": "u", "password": "p"}
	inputs := m{"imageName": name, "build": build, "registry": login}

	r := p.Resource(imageType, "img")
	preview := r.Preview(props(inputs))
	if preview["repoDigest"].IsString() {
		t.Errorf("preview: %v", preview)
	}
	if err := r.Create(props(with(inputs, m{"registry": with(login, m{"password": "wrong"})}))); err == nil {
		t.Error("pushed with a wrong password")
	}
	if err := r.Create(props(inputs)); err != nil {
		t.Fatal(err)
	}
	digest := str(r.Outputs, "repoDigest")
	if !strings.HasPrefix(digest, strings.TrimSuffix(name, ":v1")+"@sha256:") || str(r.Outputs, "imageName") != name ||
		str(r.Outputs, "baseImageName") != name || str(r.Outputs, "dockerfile") != "Dockerfile" || str(r.Outputs, "platform") != "linux/amd64" {
		t.Errorf("outputs: %v", r.Outputs)
	}
	live, err := docker.ImageInspect(ctx, name)
	if err != nil || live.Config.Labels["step"] != "one" {
		t.Errorf("image: %+v %v", live.Config, err)
	}
	if !strings.Contains(p.Log(), "COPY . /") {
		t.Errorf("progress: %q", p.Log())
	}

	same := func(why string, inputs m, want plugin.DiffChanges) {
		t.Helper()
		if d := r.Diff(props(inputs)); d.Changes != want || d.Replace() {
			t.Errorf("%s: %+v", why, d)
		}
	}
	same("no change", inputs, plugin.DiffNone)
	same("a new password", with(inputs, m{"registry": with(login, m{"password": "q"})}), plugin.DiffNone)
	same("an argument", with(inputs, m{"build": with(build, m{"args": m{"STEP": "two"}})}), plugin.DiffSome)
	same("an argument not known yet", with(inputs, m{"build": with(build, m{"args": m{"STEP": resource.MakeComputed(resource.NewStringProperty(""))}})}), plugin.DiffSome)
	write(t, filepath.Join(dir, "ignored"), "2")
	same("an ignored file", inputs, plugin.DiffNone)
	write(t, filepath.Join(dir, "seen"), "2")
	same("a changed file", inputs, plugin.DiffSome)
	if err := r.Update(props(inputs)); err != nil {
		t.Fatal(err)
	}
	if str(r.Outputs, "repoDigest") == digest {
		t.Error("the digest is still the old one")
	}
	_, _ = docker.ImageRemove(ctx, digest, image.RemoveOptions{Force: true})
	same("after the update", inputs, plugin.DiffNone)
	if !r.Refresh() {
		t.Error("refresh lost it")
	}

	// A private image is pulled with the provider's login.
	digest = str(r.Outputs, "repoDigest")
	if _, err := docker.ImageRemove(ctx, name, image.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	q := plugintest.Start(t)
	if err := q.Use("docker", props(m{"registryAuth": []any{m{"address": addr, "username": "u", "password": "p"}}})); err != nil {
		t.Fatal(err)
	}
	c := q.Resource(containerType, "c")
	if err := c.Create(props(m{"image": digest, "name": unique(t), "command": []any{"sleep"}})); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(); err != nil {
		t.Fatal(err)
	}
	_, _ = docker.ImageRemove(ctx, digest, image.RemoveOptions{Force: true})
	if err := r.Delete(); err != nil {
		t.Fatal(err)
	}
}

func TestImageErrors(t *testing.T) {
	p, docker := start(t)
	name := unique(t) + ":1"
	t.Cleanup(func() { _, _ = docker.ImageRemove(ctx, name, image.RemoveOptions{Force: true}) })
	dir := buildContext(t, "FROM scratch\nLABEL plugintest="+name+"\nCOPY helper /helper\n"+
		"RUN [\"/helper\", \"fail\", \"this is why\", \"3\"]\n")
	t.Cleanup(func() { // the classic builder keeps the layers up to the failing step
		left, _ := docker.ImageList(ctx, image.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", "plugintest="+name))})
		for _, l := range left {
			_, _ = docker.ImageRemove(ctx, l.ID, image.RemoveOptions{Force: true, PruneChildren: true})
		}
	})
	build := m{"context": dir, "dockerfile": filepath.Join(dir, "Dockerfile"), "platform": "linux/amd64"}
	for _, builder := range []string{"BuilderBuildKit", "BuilderV1"} {
		err := p.Resource(imageType, "i").Create(props(m{"imageName": name, "skipPush": true, "build": with(build, m{"builderVersion": builder})}))
		if err == nil || !strings.Contains(err.Error(), "3") || !released && !strings.Contains(err.Error(), "this is why") {
			t.Errorf("%s: %v", builder, err)
		}
	}
	for what, inputs := range map[string]m{
		"no Dockerfile":  {"imageName": name, "skipPush": true, "build": m{"context": dir, "dockerfile": filepath.Join(dir, "none")}},
		"not in context": {"imageName": name, "skipPush": true, "build": m{"context": "testdata", "dockerfile": "helper/main.go"}},
		"no registry":    {"imageName": "not/qualified", "build": build},
	} {
		if _, failures, err := p.Resource(imageType, "i").Check(props(inputs)); err == nil && len(failures) == 0 {
			t.Errorf("%s: accepted", what)
		} else {
			t.Log(what, failures, err)
		}
	}
	if _, failures, err := p.Resource(imageType, "i").Check(props(m{"imageName": name, "skipPush": true,
		"build": m{"context": dir, "dockerfile": filepath.Join(dir, "Dockerfile"), "cacheFrom": m{"images": []any{"x"}}},
	})); !released && (err != nil || len(failures) != 1 || failures[0].Property != "build.cacheFrom") {
		t.Errorf("cacheFrom: %v %v", failures, err)
	}
}

func TestImageCancel(t *testing.T) {
	if released {
		t.Skip("the released plugin goes on")
	}
	p, _ := start(t)
	dir := buildContext(t, "FROM scratch\nCOPY helper /helper\nRUN [\"/helper\", \"sleep\"]\n")
	done := make(chan error, 1)
	go func() {
		done <- p.Resource(imageType, "i").Create(props(m{"imageName": unique(t) + ":1", "skipPush": true,
			"build": m{"context": dir, "dockerfile": filepath.Join(dir, "Dockerfile"), "platform": "linux/amd64"}}))
	}()
	for end := time.Now().Add(60 * time.Second); !strings.Contains(p.Log(), `"sleep"]`); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the build does not get to the step: %s", p.Log())
		}
	}
	_ = p.SignalCancellation(ctx)
	select {
	case err := <-done:
		if err == nil {
			t.Error("a cancelled build succeeded")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("still building 20 s after the cancellation")
	}
}

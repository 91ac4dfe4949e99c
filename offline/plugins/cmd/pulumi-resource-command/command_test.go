package main

import (
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	sshd "github.com/gliderlabs/ssh"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"golang.org/x/crypto/ssh"

	"spdk-k8s/offline/plugins/internal/plugintest"
)

const (
	local  = "command:local:Command"
	remote = "command:remote:Command"
)

var props = plugintest.Map

func TestMain(m *testing.M) { os.Exit(plugintest.Main(m)) }

func start(t *testing.T) *plugintest.Plugin {
	t.Helper()
	p := plugintest.Start(t)
	if err := p.Use("command", nil); err != nil {
		t.Fatal(err)
	}
	return p
}

// text returns a string output, secret or not.
func text(m resource.PropertyMap, key resource.PropertyKey) string {
	v := m[key]
	for v.IsSecret() {
		v = v.SecretValue().Element
	}
	if !v.IsString() {
		return fmt.Sprint(v)
	}
	return v.StringValue()
}

func TestLocalLife(t *testing.T) {
	p := start(t)
	if info, err := p.GetPluginInfo(context.Background()); err != nil || info.Version.String() != version {
		t.Fatalf("plugin info: %v %v", info, err)
	}
	file := filepath.Join(t.TempDir(), "log")
	inputs := func(over map[string]any) resource.PropertyMap {
		m := map[string]any{
			"create":      "echo made $A; cat; echo oops >&2; echo create >>" + file,
			"update":      "echo \"was $PULUMI_COMMAND_STDOUT\"; echo update >>" + file,
			"delete":      "echo \"delete $PULUMI_COMMAND_STDOUT\" >>" + file,
			"environment": map[string]any{"A": "a b"},
			"stdin":       "in\n",
			"triggers":    []any{1.0},
		}
		for k, v := range over {
			m[k] = v
		}
		return props(m)
	}
	r := p.Resource(local, "c")
	if out := r.Preview(inputs(nil)); !out["stdout"].IsComputed() && !out["stdout"].IsOutput() {
		t.Errorf("preview: stdout is %v, want unknown", out["stdout"])
	}
	if err := r.Create(inputs(nil)); err != nil {
		t.Fatal(err)
	}
	if got := text(r.Outputs, "stdout"); got != "made a b\nin" {
		t.Errorf("stdout %q", got)
	}
	if got := text(r.Outputs, "stderr"); got != "oops" {
		t.Errorf("stderr %q", got)
	}
	if r.Outputs["stdout"].IsSecret() {
		t.Error("stdout is secret although no input is")
	}
	if log := p.Log(); !strings.Contains(log, "made a b") || !strings.Contains(log, "oops") {
		t.Errorf("not streamed: %q", log)
	}
	if d := r.Diff(inputs(nil)); d.Changes != plugin.DiffNone {
		t.Errorf("no change: %+v", d)
	}
	// The SDK tells the engine that a change of triggers replaces.
	if d := r.Diff(inputs(map[string]any{"triggers": []any{2.0}})); len(d.DetailedDiff) != 1 {
		t.Errorf("triggers: %+v", d)
	}
	changed := inputs(map[string]any{"stdin": "else"})
	if d := r.Diff(changed); d.Changes != plugin.DiffSome || d.Replace() {
		t.Errorf("stdin: %+v", d)
	}
	if err := r.Update(changed); err != nil {
		t.Fatal(err)
	}
	if got := text(r.Outputs, "stdout"); got != "was made a b\nin" {
		t.Errorf("updated stdout %q", got)
	}
	if !r.Refresh() {
		t.Error("refresh lost it")
	}
	if err := r.Delete(); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(file)
	if got := string(b); got != "create\nupdate\ndelete was made a b\nin\n" {
		t.Errorf("ran %q", got)
	}
}

func TestLocalSecrets(t *testing.T) {
	p := start(t)
	r := p.Resource(local, "s")
	secret := resource.MakeSecret(resource.NewStringProperty("hush"))
	if err := r.Create(resource.PropertyMap{
		"create": resource.NewStringProperty("cat"), "stdin": secret, "logging": resource.NewStringProperty("none"),
	}); err != nil {
		t.Fatal(err)
	}
	if !r.Outputs["stdin"].IsSecret() {
		t.Errorf("secret input, plain output: %v", r.Outputs)
	}
	if strings.Contains(p.Log(), "hush") {
		t.Error("logging none, but the output was logged")
	}
}

func TestLocalFailureSaysWhat(t *testing.T) {
	r := start(t).Resource(local, "f")
	err := r.Create(props(map[string]any{"create": "echo out; echo why >&2; exit 3"}))
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "why") {
		t.Errorf("error %v", err)
	}
}

func TestLocalFiles(t *testing.T) {
	dir := t.TempDir()
	r := start(t).Resource(local, "a")
	if err := r.Create(props(map[string]any{
		"create": "mkdir -p d/e; echo 1 >d/a.txt; echo 2 >d/e/b.txt; echo 3 >d/no.txt", "dir": dir,
		"interpreter": []any{"/bin/bash", "-c"},
		"assetPaths":  []any{"d/**.txt", "!**no.txt"}, "archivePaths": []any{"d/*.txt"},
	})); err != nil {
		t.Fatal(err)
	}
	assets := r.Outputs["assets"].ObjectValue()
	if len(assets) != 2 || assets["d/a.txt"].AssetValue().Path != filepath.Join(dir, "d/a.txt") {
		t.Errorf("assets %v", assets)
	}
	if files := r.Outputs["archive"].ArchiveValue().Assets; len(files) != 2 {
		t.Errorf("archive %v", files)
	}
}

func TestLocalCancelKillsWhatItStarted(t *testing.T) {
	if os.Getenv("PLUGINS_UNDER_TEST") != "" {
		t.Skip("the released plugin waits for what the command started")
	}
	p := start(t)
	pid := filepath.Join(t.TempDir(), "pid")
	done := make(chan error, 1)
	go func() {
		done <- p.Resource(local, "k").Create(props(map[string]any{
			"create": "sleep 300 & echo $! >" + pid + ".new; mv " + pid + ".new " + pid + "; wait"}))
	}()
	child := waitForPid(t, pid)
	_ = p.SignalCancellation(context.Background())
	select {
	case err := <-done:
		if err == nil {
			t.Error("a cancelled command succeeded")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("still running 20 s after the cancellation")
	}
	if err := waitGone(child); err != nil {
		t.Error(err)
	}
}

func TestNotServed(t *testing.T) {
	if os.Getenv("PLUGINS_UNDER_TEST") != "" {
		t.Skip("the released plugin has it")
	}
	_, _, err := start(t).Resource("command:remote:CopyToRemote", "x").Check(props(map[string]any{}))
	if err == nil || !strings.Contains(err.Error(), "CopyToRemote") || !strings.Contains(err.Error(), "released") {
		t.Errorf("error %v", err)
	}
}

// server is an SSH server on loopback that runs commands as the tests' user.
type server struct {
	connection map[string]any
	hostKey    string
}

func serve(t *testing.T, acceptEnv bool) server {
	t.Helper()
	hostPublic, hostPrivate := key(t)
	userPublic, userPrivate := key(t)
	signer, err := ssh.ParsePrivateKey([]byte(hostPrivate))
	if err != nil {
		t.Fatal(err)
	}
	s := &sshd.Server{
		Handler:                     func(sess sshd.Session) { handle(sess, acceptEnv) },
		PublicKeyHandler:            func(_ sshd.Context, k sshd.PublicKey) bool { return sshd.KeysEqual(k, userPublic) },
		LocalPortForwardingCallback: func(sshd.Context, string, uint32) bool { return true },
		ChannelHandlers: map[string]sshd.ChannelHandler{
			"session": sshd.DefaultSessionHandler, "direct-tcpip": sshd.DirectTCPIPHandler,
		},
	}
	s.AddHostKey(signer)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(listener) }()
	t.Cleanup(func() { s.Close() })
	hostKey := string(ssh.MarshalAuthorizedKey(hostPublic))
	return server{hostKey: hostKey, connection: map[string]any{
		"host": "127.0.0.1", "port": float64(listener.Addr().(*net.TCPAddr).Port), "user": "u",
		"privateKey": userPrivate, "hostKey": hostKey, "dialErrorLimit": 2.0,
	}}
}

func handle(sess sshd.Session, acceptEnv bool) {
	cmd := exec.Command("/bin/sh", "-c", sess.RawCommand())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if acceptEnv {
		cmd.Env = append(os.Environ(), sess.Environ()...)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = sess, sess, sess.Stderr()
	cmd.WaitDelay = time.Second
	signals := make(chan sshd.Signal, 8)
	sess.Signals(signals)
	if err := cmd.Start(); err != nil {
		_ = sess.Exit(127)
		return
	}
	go func() {
		for s := range signals {
			if s == sshd.SIGTERM || s == sshd.SIGKILL {
				_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
			}
		}
	}()
	_ = cmd.Wait()
	_ = sess.Exit(cmd.ProcessState.ExitCode())
}

// key makes a key pair; the private half as OpenSSH writes it.
func key(t *testing.T) (ssh.PublicKey, string) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return public, string(pem.EncodeToMemory(block))
}

func with(m map[string]any, over map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		out[k] = v
	}
	for k, v := range over {
		out[k] = v
	}
	return out
}

func TestRemoteLife(t *testing.T) {
	p, s := start(t), serve(t, true)
	file := filepath.Join(t.TempDir(), "log")
	inputs := func(over map[string]any) resource.PropertyMap {
		return props(with(map[string]any{
			"connection":  s.connection,
			"create":      "echo made $A; cat; echo oops >&2",
			"update":      "echo \"was $PULUMI_COMMAND_STDOUT\"",
			"delete":      "echo \"delete $PULUMI_COMMAND_STDOUT\" >>" + file,
			"environment": map[string]any{"A": "a"},
			"stdin":       "in\n",
		}, over))
	}
	r := p.Resource(remote, "r")
	if checked := r.Checked(inputs(nil)); !checked["connection"].IsSecret() {
		t.Error("the connection is not secret")
	}
	if out := r.Preview(inputs(map[string]any{"connection": resource.MakeComputed(resource.NewStringProperty(""))})); out["stdout"].IsString() {
		t.Errorf("preview: stdout is %v, want unknown", out["stdout"])
	}
	if err := r.Create(inputs(nil)); err != nil {
		t.Fatal(err)
	}
	if got := text(r.Outputs, "stdout"); got != "made a\nin" {
		t.Errorf("stdout %q", got)
	}
	if got := text(r.Outputs, "stderr"); got != "oops" {
		t.Errorf("stderr %q", got)
	}
	if r.Outputs["stdout"].IsSecret() {
		t.Error("stdout is secret, which the released plugin leaves to additionalSecretOutputs")
	}
	if !r.Outputs["connection"].IsSecret() {
		t.Error("the connection is not secret in the outputs")
	}
	if d := r.Diff(inputs(nil)); d.Changes != plugin.DiffNone {
		t.Errorf("no change: %+v", d)
	}
	if d := r.Diff(inputs(map[string]any{"triggers": []any{"x"}})); !d.Replace() {
		t.Errorf("new triggers: %+v", d)
	}
	changed := inputs(map[string]any{"stdin": "else"})
	if d := r.Diff(changed); d.Changes != plugin.DiffSome || d.Replace() {
		t.Errorf("stdin: %+v", d)
	}
	if err := r.Update(changed); err != nil {
		t.Fatal(err)
	}
	if got := text(r.Outputs, "stdout"); got != "was made a\nin" {
		t.Errorf("updated stdout %q", got)
	}
	if err := r.Delete(); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(file); string(b) != "delete was made a\nin\n" {
		t.Errorf("delete ran %q", b)
	}
}

func TestRemoteErrors(t *testing.T) {
	p, s := start(t), serve(t, true)
	other, _ := key(t)
	for name, c := range map[string]struct {
		over map[string]any
		want string
	}{
		"exit status":    {map[string]any{"create": "echo why >&2; exit 4"}, "why"},
		"wrong host key": {map[string]any{"connection": with(s.connection, map[string]any{"hostKey": string(ssh.MarshalAuthorizedKey(other))})}, "host key"},
		"bad key":        {map[string]any{"connection": with(s.connection, map[string]any{"privateKey": "nonsense"})}, "key"},
		"nobody there":   {map[string]any{"connection": with(s.connection, map[string]any{"port": 1.0})}, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			err := p.Resource(remote, "e").Create(props(with(map[string]any{"connection": s.connection, "create": "true"}, c.over)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestRemoteProxy(t *testing.T) {
	p, s, hop := start(t), serve(t, true), serve(t, true)
	r := p.Resource(remote, "p")
	if err := r.Create(props(map[string]any{
		"connection": with(s.connection, map[string]any{"proxy": hop.connection}), "create": "echo through",
	})); err != nil {
		t.Fatal(err)
	}
	if got := text(r.Outputs, "stdout"); got != "through" {
		t.Errorf("stdout %q", got)
	}
}

func TestRemoteCancelEndsTheCommand(t *testing.T) {
	if os.Getenv("PLUGINS_UNDER_TEST") != "" {
		t.Skip("the released plugin waits for the command's end")
	}
	p, s := start(t), serve(t, true)
	pid := filepath.Join(t.TempDir(), "pid")
	done := make(chan error, 1)
	go func() {
		done <- p.Resource(remote, "k").Create(props(map[string]any{
			"connection": s.connection,
			"create":     "sleep 300 & echo $! >" + pid + ".new; mv " + pid + ".new " + pid + "; wait"}))
	}()
	child := waitForPid(t, pid)
	_ = p.SignalCancellation(context.Background())
	select {
	case err := <-done:
		if err == nil {
			t.Error("a cancelled command succeeded")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("still running 20 s after the cancellation")
	}
	if err := waitGone(child); err != nil {
		t.Error(err)
	}
}

func waitForPid(t *testing.T, file string) int {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var pid int
		if b, err := os.ReadFile(file); err == nil {
			if _, err := fmt.Sscan(string(b), &pid); err == nil {
				return pid
			}
		}
	}
	t.Fatal("the command did not start")
	return 0
}

func waitGone(pid int) error {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(b), ") Z ") {
			return nil
		}
	}
	return fmt.Errorf("process %d, which the command started, is still running", pid)
}

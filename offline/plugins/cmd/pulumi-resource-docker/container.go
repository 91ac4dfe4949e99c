package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/docker/docker/api/types"
	api "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	apinet "github.com/docker/docker/api/types/network"
	"github.com/docker/go-connections/nat"
	"github.com/docker/go-units"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
)

// container is docker:index/container:Container.
type container struct {
	Name     string `json:"name" prop:"replace"`
	Image    string `json:"image" prop:"required,replace"`
	Platform string `json:"platform" prop:"replace"`

	Hostname    string       `json:"hostname" prop:"replace"`
	Domainname  string       `json:"domainname" prop:"replace"`
	Command     []string     `json:"command" prop:"replace"`
	Entrypoints []string     `json:"entrypoints" prop:"replace"`
	Envs        []string     `json:"envs" prop:"replace,set"`
	User        string       `json:"user" prop:"replace"`
	WorkingDir  string       `json:"workingDir" prop:"replace"`
	Labels      []label      `json:"labels" prop:"replace,set"`
	Healthcheck *healthcheck `json:"healthcheck"`
	StopSignal  string       `json:"stopSignal" prop:"replace"`
	StopTimeout *int         `json:"stopTimeout" prop:"replace"`
	Tty         bool         `json:"tty" prop:"replace"`
	StdinOpen   bool         `json:"stdinOpen" prop:"replace"`

	Privileged   bool              `json:"privileged" prop:"replace"`
	Capabilities *capabilities     `json:"capabilities" prop:"replace"`
	SecurityOpts []string          `json:"securityOpts" prop:"replace,set"`
	CgroupnsMode string            `json:"cgroupnsMode" prop:"replace"`
	CgroupParent string            `json:"cgroupParent" prop:"replace"`
	IpcMode      string            `json:"ipcMode" prop:"replace"`
	PidMode      string            `json:"pidMode" prop:"replace"`
	UsernsMode   string            `json:"usernsMode" prop:"replace"`
	GroupAdds    []string          `json:"groupAdds" prop:"replace,set"`
	Devices      []device          `json:"devices" prop:"replace,set"`
	Ulimits      []ulimit          `json:"ulimits" prop:"replace,set"`
	Sysctls      map[string]string `json:"sysctls" prop:"replace"`
	Init         *bool             `json:"init"`
	Runtime      string            `json:"runtime" prop:"replace"`
	ReadOnly     bool              `json:"readOnly" prop:"replace"`

	Memory            int64  `json:"memory"` // MiB, as the next four
	MemoryReservation int64  `json:"memoryReservation"`
	MemorySwap        int64  `json:"memorySwap"`
	ShmSize           int64  `json:"shmSize" prop:"replace"`
	CPUShares         int64  `json:"cpuShares"`
	CPUSet            string `json:"cpuSet"`
	Cpus              string `json:"cpus" prop:"replace"`

	Mounts  []mountPoint      `json:"mounts" prop:"replace,set"`
	Tmpfs   map[string]string `json:"tmpfs"`
	Volumes []containerVolume `json:"volumes" prop:"replace,set"`
	Uploads []upload          `json:"uploads" prop:"replace,set"`

	NetworkMode      string            `json:"networkMode" prop:"replace" default:"\"bridge\""`
	NetworksAdvanced []networkAdvanced `json:"networksAdvanced" prop:"replace,set"`
	Ports            []port            `json:"ports" prop:"replace"`
	PublishAllPorts  bool              `json:"publishAllPorts" prop:"replace"`
	DNS              []string          `json:"dns" prop:"replace,set"`
	DNSOpts          []string          `json:"dnsOpts" prop:"replace,set"`
	DNSSearches      []string          `json:"dnsSearches" prop:"replace,set"`
	Hosts            []host            `json:"hosts" prop:"replace,set"`

	LogDriver string            `json:"logDriver" prop:"replace"`
	LogOpts   map[string]string `json:"logOpts" prop:"replace"`

	Restart             string `json:"restart"`
	MaxRetryCount       int    `json:"maxRetryCount"`
	Start               bool   `json:"start" default:"true"`
	MustRun             bool   `json:"mustRun" default:"true"`
	Wait                bool   `json:"wait"`
	WaitTimeout         int    `json:"waitTimeout" default:"60"`
	Rm                  bool   `json:"rm"`
	RemoveVolumes       bool   `json:"removeVolumes" default:"true"`
	DestroyGraceSeconds int    `json:"destroyGraceSeconds"`
	ReadRefreshTimeout  int    `json:"containerReadRefreshTimeoutMilliseconds" default:"15000"`
}

type healthcheck struct {
	Tests         []string `json:"tests"`
	Interval      string   `json:"interval"`
	Timeout       string   `json:"timeout"`
	StartPeriod   string   `json:"startPeriod"`
	StartInterval string   `json:"startInterval"`
	Retries       int      `json:"retries"`
}

type capabilities struct {
	Adds  []string `json:"adds" prop:"set"`
	Drops []string `json:"drops" prop:"set"`
}

type device struct {
	HostPath      string `json:"hostPath" prop:"required"`
	ContainerPath string `json:"containerPath"`
	Permissions   string `json:"permissions" default:"\"rwm\""`
}

type ulimit struct {
	Name string `json:"name" prop:"required"`
	Soft int64  `json:"soft" prop:"required"`
	Hard int64  `json:"hard" prop:"required"`
}

type mountPoint struct {
	Type         string        `json:"type" prop:"required"`
	Target       string        `json:"target" prop:"required"`
	Source       string        `json:"source"`
	ReadOnly     bool          `json:"readOnly"`
	BindOptions  *bindOptions  `json:"bindOptions"`
	TmpfsOptions *tmpfsOptions `json:"tmpfsOptions"`
}

type bindOptions struct {
	Propagation string `json:"propagation"`
}

type tmpfsOptions struct {
	SizeBytes int64 `json:"sizeBytes"`
	Mode      int64 `json:"mode"`
}

type containerVolume struct {
	ContainerPath string `json:"containerPath" prop:"required"`
	HostPath      string `json:"hostPath"`
	VolumeName    string `json:"volumeName"`
	ReadOnly      bool   `json:"readOnly"`
}

type upload struct {
	File          string `json:"file" prop:"required"`
	Content       string `json:"content"`
	ContentBase64 string `json:"contentBase64"`
	Source        string `json:"source"`
	SourceHash    string `json:"sourceHash"` // only there to make a change of the source visible
	Executable    bool   `json:"executable"`
	Permissions   string `json:"permissions"`
}

type networkAdvanced struct {
	Name        string   `json:"name" prop:"required"`
	Aliases     []string `json:"aliases"`
	IPv4Address string   `json:"ipv4Address"`
	IPv6Address string   `json:"ipv6Address"`
	MacAddress  string   `json:"macAddress"`
}

type port struct {
	Internal int    `json:"internal" prop:"required"`
	External int    `json:"external"`
	IP       string `json:"ip" default:"\"0.0.0.0\""`
	Protocol string `json:"protocol" default:"\"tcp\""`
}

type host struct {
	Host string `json:"host" prop:"required"`
	IP   string `json:"ip" prop:"required"`
}

const mib = 1 << 20

func (c *container) create(ctx context.Context, d *docker) (string, error) {
	urn, _ := ctx.Value(urnKey{}).(resource.URN)
	if err := d.ensureImage(ctx, urn, c.Image, c.Platform); err != nil {
		return "", fmt.Errorf("image %s of container %s: %w", c.Image, c.Name, err)
	}
	config, hostConfig, err := c.configs()
	if err != nil {
		return "", fmt.Errorf("container %s: %w", c.Name, err)
	}
	var platform *ocispec.Platform
	if c.Platform != "" {
		p, err := platforms.Parse(c.Platform)
		if err != nil {
			return "", fmt.Errorf("platform: %w", err)
		}
		platform = &p
	}
	files, err := c.archive()
	if err != nil {
		return "", fmt.Errorf("uploads of container %s: %w", c.Name, err)
	}
	made, err := d.ContainerCreate(ctx, config, hostConfig, &apinet.NetworkingConfig{}, platform, c.Name)
	if err != nil {
		return "", fmt.Errorf("container %s cannot be created: %w", c.Name, err)
	}
	for _, warning := range made.Warnings {
		d.log(ctx, diag.Warning, urn, warning)
	}
	if err := c.bringUp(ctx, d, made.ID, files); err != nil {
		// The engine would not know of it: a container that does not come up goes away again.
		gone := d.ContainerRemove(context.WithoutCancel(ctx), made.ID, api.RemoveOptions{Force: true, RemoveVolumes: true})
		return "", errors.Join(fmt.Errorf("container %s: %w", c.Name, err), gone)
	}
	return made.ID, nil
}

// bringUp connects, fills and starts a container that was just created.
func (c *container) bringUp(ctx context.Context, d *docker, id string, files []byte) error {
	if len(c.NetworksAdvanced) > 0 {
		err := d.NetworkDisconnect(ctx, "bridge", id, false)
		if err != nil && !strings.Contains(err.Error(), "is not connected to") {
			return fmt.Errorf("cannot leave the default network: %w", err)
		}
	}
	for _, n := range c.NetworksAdvanced {
		if err := d.NetworkConnect(ctx, n.Name, id, &apinet.EndpointSettings{
			Aliases: n.Aliases, MacAddress: n.MacAddress,
			IPAMConfig: &apinet.EndpointIPAMConfig{IPv4Address: n.IPv4Address, IPv6Address: n.IPv6Address},
		}); err != nil {
			return fmt.Errorf("cannot join network %s: %w", n.Name, err)
		}
	}
	if files != nil {
		if err := d.CopyToContainer(ctx, id, "/", bytes.NewReader(files), api.CopyToContainerOptions{}); err != nil {
			return fmt.Errorf("uploads: %w", err)
		}
	}
	if !c.Start {
		return nil
	}
	if err := d.ContainerStart(ctx, id, api.StartOptions{}); err != nil {
		return fmt.Errorf("cannot be started: %w", err)
	}
	if c.Wait {
		return c.waitHealthy(ctx, d, id)
	}
	return nil
}

func (c *container) waitHealthy(ctx context.Context, d *docker, id string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.WaitTimeout)*time.Second)
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		live, err := d.ContainerInspect(ctx, id)
		if err != nil {
			return err
		}
		switch health := live.State.Health; {
		case health == nil:
			return errors.New("wait: it has no health check to wait for: add healthcheck, or leave out wait")
		case health.Status == types.Healthy:
			return nil
		case !live.State.Running:
			return fmt.Errorf("wait: it ended with exit code %d before it was healthy", live.State.ExitCode)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait: not healthy within waitTimeout (%d s)", c.WaitTimeout)
		}
	}
}

// configs are the inputs in the engine's own terms.
func (c *container) configs() (*api.Config, *api.HostConfig, error) {
	config := &api.Config{
		Image: c.Image, Hostname: c.Hostname, Domainname: c.Domainname, Cmd: c.Command, Entrypoint: c.Entrypoints,
		Env: c.Envs, User: c.User, WorkingDir: c.WorkingDir, Labels: labels(c.Labels), StopSignal: c.StopSignal,
		StopTimeout: c.StopTimeout, Tty: c.Tty, OpenStdin: c.StdinOpen,
		ExposedPorts: nat.PortSet{}, Volumes: map[string]struct{}{},
	}
	init := c.Init != nil && *c.Init
	hostConfig := &api.HostConfig{
		Privileged: c.Privileged, CgroupnsMode: api.CgroupnsMode(c.CgroupnsMode), IpcMode: api.IpcMode(c.IpcMode),
		PidMode: api.PidMode(c.PidMode), UsernsMode: api.UsernsMode(c.UsernsMode), GroupAdd: c.GroupAdds,
		Sysctls: c.Sysctls, Init: &init, Runtime: c.Runtime, ReadonlyRootfs: c.ReadOnly, ShmSize: c.ShmSize * mib,
		Tmpfs: c.Tmpfs, NetworkMode: api.NetworkMode(c.NetworkMode), PortBindings: nat.PortMap{},
		PublishAllPorts: c.PublishAllPorts, DNS: c.DNS, DNSOptions: c.DNSOpts, DNSSearch: c.DNSSearches,
		LogConfig: api.LogConfig{Type: c.LogDriver, Config: c.LogOpts}, AutoRemove: c.Rm,
		RestartPolicy: c.restartPolicy(),
		Resources:     c.resources(),
	}
	if !hostConfig.CgroupnsMode.Valid() {
		return nil, nil, fmt.Errorf("cgroupnsMode is %q: must be private, host or empty", c.CgroupnsMode)
	}
	hostConfig.CgroupParent = c.CgroupParent
	if c.Cpus != "" {
		cpus, err := strconv.ParseFloat(c.Cpus, 64)
		if err != nil {
			return nil, nil, fmt.Errorf("cpus is %q: must be a number", c.Cpus)
		}
		hostConfig.NanoCPUs = int64(cpus * 1e9)
	}
	if c.Capabilities != nil {
		hostConfig.CapAdd, hostConfig.CapDrop = c.Capabilities.Adds, c.Capabilities.Drops
	}
	for _, opt := range c.SecurityOpts {
		if opt == "systempaths=unconfined" { // the engine knows this one only as two empty lists
			hostConfig.MaskedPaths, hostConfig.ReadonlyPaths = []string{}, []string{}
		} else {
			hostConfig.SecurityOpt = append(hostConfig.SecurityOpt, opt)
		}
	}
	for _, v := range c.Devices {
		inside := v.ContainerPath
		if inside == "" {
			inside = v.HostPath
		}
		hostConfig.Devices = append(hostConfig.Devices, api.DeviceMapping{
			PathOnHost: v.HostPath, PathInContainer: inside, CgroupPermissions: v.Permissions,
		})
	}
	for _, v := range c.Ulimits {
		hostConfig.Ulimits = append(hostConfig.Ulimits, &units.Ulimit{Name: v.Name, Soft: v.Soft, Hard: v.Hard})
	}
	for _, v := range c.Hosts {
		hostConfig.ExtraHosts = append(hostConfig.ExtraHosts, v.Host+":"+v.IP)
	}
	for _, v := range c.Mounts {
		m := mount.Mount{Type: mount.Type(v.Type), Target: v.Target, Source: v.Source, ReadOnly: v.ReadOnly}
		if v.BindOptions != nil {
			m.BindOptions = &mount.BindOptions{Propagation: mount.Propagation(v.BindOptions.Propagation)}
		}
		if v.TmpfsOptions != nil {
			m.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: v.TmpfsOptions.SizeBytes, Mode: os.FileMode(v.TmpfsOptions.Mode)}
		}
		hostConfig.Mounts = append(hostConfig.Mounts, m)
	}
	for _, v := range c.Volumes {
		config.Volumes[v.ContainerPath] = struct{}{}
		source, mode := v.HostPath, "rw"
		if source == "" {
			source = v.VolumeName
		}
		if v.ReadOnly {
			mode = "ro"
		}
		if source != "" {
			hostConfig.Binds = append(hostConfig.Binds, source+":"+v.ContainerPath+":"+mode)
		}
	}
	for _, v := range c.Ports {
		inside := nat.Port(fmt.Sprintf("%d/%s", v.Internal, v.Protocol))
		config.ExposedPorts[inside] = struct{}{}
		hostConfig.PortBindings[inside] = append(hostConfig.PortBindings[inside], nat.PortBinding{
			HostIP: v.IP, HostPort: strconv.Itoa(v.External),
		})
	}
	if h := c.Healthcheck; h != nil {
		config.Healthcheck = &api.HealthConfig{Test: h.Tests, Retries: h.Retries}
		for _, v := range []struct {
			name, text string
			into       *time.Duration
		}{
			{"interval", h.Interval, &config.Healthcheck.Interval},
			{"timeout", h.Timeout, &config.Healthcheck.Timeout},
			{"startPeriod", h.StartPeriod, &config.Healthcheck.StartPeriod},
			{"startInterval", h.StartInterval, &config.Healthcheck.StartInterval},
		} {
			if v.text == "" {
				continue
			}
			var err error
			if *v.into, err = time.ParseDuration(v.text); err != nil {
				return nil, nil, fmt.Errorf("healthcheck.%s: %w", v.name, err)
			}
		}
	}
	return config, hostConfig, nil
}

func (c *container) restartPolicy() api.RestartPolicy {
	name := c.Restart
	if name == "" {
		name = "no"
	}
	return api.RestartPolicy{Name: api.RestartPolicyMode(name), MaximumRetryCount: c.MaxRetryCount}
}

// resources are the limits that can change while it runs.
func (c *container) resources() api.Resources {
	swap := c.MemorySwap
	if swap > 0 {
		swap *= mib
	}
	return api.Resources{
		Memory: c.Memory * mib, MemoryReservation: c.MemoryReservation * mib, MemorySwap: swap,
		CPUShares: c.CPUShares, CpusetCpus: c.CPUSet,
	}
}

// archive is a tar of the uploads, nil if there are none.
func (c *container) archive() ([]byte, error) {
	if len(c.Uploads) == 0 {
		return nil, nil
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, u := range c.Uploads {
		content, err := u.content()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", u.File, err)
		}
		mode := int64(0o644)
		switch {
		case u.Permissions != "":
			if mode, err = strconv.ParseInt(u.Permissions, 8, 32); err != nil {
				return nil, fmt.Errorf("%s: permissions %q are no octal number", u.File, u.Permissions)
			}
		case u.Executable:
			mode = 0o744
		}
		header := &tar.Header{Name: u.File, Mode: mode, Size: int64(len(content)), ModTime: time.Now()}
		if err := tw.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("%s: %w", u.File, err)
		}
		if _, err := tw.Write(content); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), tw.Close()
}

func (u *upload) content() ([]byte, error) {
	given := 0
	for _, s := range []string{u.Content, u.ContentBase64, u.Source} {
		if s != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return nil, fmt.Errorf("exactly one of content, contentBase64 and source must be set, %d are", given)
	case u.Source != "":
		return os.ReadFile(u.Source)
	case u.ContentBase64 != "":
		return base64.StdEncoding.DecodeString(u.ContentBase64)
	}
	return []byte(u.Content), nil
}

func (c *container) read(ctx context.Context, d *docker, id string) (map[string]any, error) {
	live, err := d.ContainerInspect(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	out := map[string]any{
		"name": strings.TrimPrefix(live.Name, "/"), "hostname": live.Config.Hostname, "platform": live.Platform,
		"runtime": live.HostConfig.Runtime, "ipcMode": string(live.HostConfig.IpcMode),
		"logDriver": live.HostConfig.LogConfig.Type, "shmSize": live.HostConfig.ShmSize / mib,
		"init":   live.HostConfig.Init != nil && *live.HostConfig.Init,
		"bridge": live.NetworkSettings.Bridge, "stopSignal": live.Config.StopSignal,
		"mustRun": c.MustRun && (live.State.Running || live.State.Restarting || !c.Start),
	}
	// An input is kept as it was written: the engine spells some of them in its own way.
	if c.Command == nil {
		out["command"] = anyList(live.Config.Cmd)
	}
	if c.Entrypoints == nil {
		out["entrypoints"] = anyList(live.Config.Entrypoint)
	}
	if c.SecurityOpts == nil {
		out["securityOpts"] = anyList(live.HostConfig.SecurityOpt)
	}
	if live.Config.StopTimeout != nil {
		out["stopTimeout"] = *live.Config.StopTimeout
	}
	if c.Restart != "" {
		out["restart"] = string(live.HostConfig.RestartPolicy.Name)
	}
	if c.Memory != 0 {
		out["memory"] = live.HostConfig.Memory / mib
	}
	if !live.State.Running {
		out["exitCode"] = live.State.ExitCode
	}
	networks := []any{}
	for _, name := range slices.Sorted(maps.Keys(live.NetworkSettings.Networks)) {
		n := live.NetworkSettings.Networks[name]
		networks = append(networks, map[string]any{
			"networkName": name, "ipAddress": n.IPAddress, "ipPrefixLength": n.IPPrefixLen, "gateway": n.Gateway,
			"globalIpv6Address": n.GlobalIPv6Address, "globalIpv6PrefixLength": n.GlobalIPv6PrefixLen,
			"ipv6Gateway": n.IPv6Gateway, "macAddress": n.MacAddress,
		})
	}
	out["networkDatas"] = networks
	return out, nil
}

func (c *container) update(ctx context.Context, d *docker, id string, changed []string) error {
	live := []string{"restart", "maxRetryCount", "memory", "memoryReservation", "memorySwap", "cpuShares", "cpuSet"}
	if slices.ContainsFunc(changed, func(key string) bool { return slices.Contains(live, key) }) {
		r := c.resources()
		if r.Memory > 0 && r.MemorySwap == 0 {
			r.MemorySwap = 2 * r.Memory // what the engine chooses at creation; left alone, it would cap the new limit
		}
		if _, err := d.ContainerUpdate(ctx, id, api.UpdateConfig{Resources: r, RestartPolicy: c.restartPolicy()}); err != nil {
			return fmt.Errorf("container %s cannot be updated: %w", c.Name, err)
		}
	}
	for _, key := range changed {
		if key == "tmpfs" || key == "healthcheck" || key == "init" || key == "rm" {
			urn, _ := ctx.Value(urnKey{}).(resource.URN)
			d.log(ctx, diag.Warning, urn, key+" takes effect when the container is replaced")
		}
	}
	if c.MustRun && c.Start {
		if err := d.ContainerStart(ctx, id, api.StartOptions{}); err != nil { // no error if it runs
			return fmt.Errorf("container %s cannot be started: %w", c.Name, err)
		}
	}
	return nil
}

func (c *container) remove(ctx context.Context, d *docker, id string) error {
	err := d.ContainerStop(ctx, id, api.StopOptions{Timeout: &c.DestroyGraceSeconds})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("container %s cannot be stopped: %w", c.Name, err)
	}
	gone, failed := d.ContainerWait(ctx, id, api.WaitConditionRemoved)
	err = d.ContainerRemove(ctx, id, api.RemoveOptions{RemoveVolumes: c.RemoveVolumes, Force: true})
	if err != nil && !errdefs.IsNotFound(err) && !strings.Contains(err.Error(), "is already in progress") {
		return fmt.Errorf("container %s cannot be removed: %w", c.Name, err)
	}
	select {
	case <-gone:
	case err := <-failed:
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
	}
	return nil
}

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	api "github.com/docker/docker/api/types/network"
)

// An object that others still use is removed once they have let go of it, or not at all.
const releaseTimeout = 30 * time.Second

type label struct {
	Label string `json:"label" prop:"required"`
	Value string `json:"value" prop:"required"`
}

func labels(list []label) map[string]string {
	out := map[string]string{}
	for _, l := range list {
		out[l.Label] = l.Value
	}
	return out
}

// network is docker:index/network:Network.
type network struct {
	Name        string            `json:"name" prop:"replace"`
	Driver      string            `json:"driver" prop:"replace"`
	Attachable  bool              `json:"attachable" prop:"replace"`
	Ingress     bool              `json:"ingress" prop:"replace"`
	Internal    bool              `json:"internal" prop:"replace"`
	IPv6        bool              `json:"ipv6" prop:"replace"`
	IpamConfigs []ipamConfig      `json:"ipamConfigs" prop:"replace,set"`
	IpamDriver  string            `json:"ipamDriver" prop:"replace" default:"\"default\""`
	IpamOptions map[string]string `json:"ipamOptions" prop:"replace"`
	Labels      []label           `json:"labels" prop:"replace,set"`
	Options     map[string]string `json:"options" prop:"replace"`
}

type ipamConfig struct {
	Subnet     string            `json:"subnet"`
	IPRange    string            `json:"ipRange"`
	Gateway    string            `json:"gateway"`
	AuxAddress map[string]string `json:"auxAddress"`
}

func (n *network) create(ctx context.Context, d *docker) (string, error) {
	ipam := &api.IPAM{Driver: n.IpamDriver, Options: n.IpamOptions}
	for _, c := range n.IpamConfigs {
		ipam.Config = append(ipam.Config, api.IPAMConfig{
			Subnet: c.Subnet, IPRange: c.IPRange, Gateway: c.Gateway, AuxAddress: c.AuxAddress,
		})
	}
	resp, err := d.NetworkCreate(ctx, n.Name, api.CreateOptions{
		Driver: n.Driver, IPAM: ipam, Options: n.Options, Labels: labels(n.Labels), EnableIPv6: &n.IPv6,
		Attachable: n.Attachable, Ingress: n.Ingress, Internal: n.Internal,
	})
	if err != nil {
		return "", fmt.Errorf("network %s cannot be created: %w", n.Name, err)
	}
	return resp.ID, nil
}

func (n *network) read(ctx context.Context, d *docker, id string) (map[string]any, error) {
	live, err := d.NetworkInspect(ctx, id, api.InspectOptions{})
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", n.Name, err)
	}
	configs := []any{}
	for _, c := range live.IPAM.Config {
		config := map[string]any{}
		for key, value := range map[string]string{"subnet": c.Subnet, "ipRange": c.IPRange, "gateway": c.Gateway} {
			if value != "" {
				config[key] = value
			}
		}
		if len(c.AuxAddress) > 0 {
			config["auxAddress"] = anyMap(c.AuxAddress)
		}
		configs = append(configs, config)
	}
	out := map[string]any{
		"name": live.Name, "driver": live.Driver, "scope": live.Scope, "internal": live.Internal,
		"attachable": live.Attachable, "ingress": live.Ingress, "ipv6": live.EnableIPv6,
		"ipamDriver": live.IPAM.Driver, "options": anyMap(live.Options),
	}
	// What the engine chose where nothing was asked for is an output; a gateway that it added is no drift.
	if len(n.IpamConfigs) == 0 {
		out["ipamConfigs"] = configs
	}
	return out, nil
}

func (n *network) update(context.Context, *docker, string, []string) error { return nil }

func (n *network) remove(ctx context.Context, d *docker, id string) error {
	return released(ctx, func() error { return d.NetworkRemove(ctx, id) }, "has active endpoints")
}

// released removes something, waiting for those who still use it.
func released(ctx context.Context, remove func() error, busy string) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		err := remove()
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		if !strings.Contains(err.Error(), busy) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

func anyMap(m map[string]string) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		out[k] = v
	}
	return out
}

func anyList(list []string) []any {
	out := []any{}
	for _, v := range list {
		out = append(out, v)
	}
	return out
}

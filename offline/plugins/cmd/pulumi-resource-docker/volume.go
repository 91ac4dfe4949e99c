package main

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	api "github.com/docker/docker/api/types/volume"
)

// volume is docker:index/volume:Volume.
type volume struct {
	Name       string            `json:"name" prop:"replace"`
	Driver     string            `json:"driver" prop:"replace"`
	DriverOpts map[string]string `json:"driverOpts" prop:"replace"`
	Labels     []label           `json:"labels" prop:"replace,set"`
}

func (v *volume) create(ctx context.Context, d *docker) (string, error) {
	made, err := d.VolumeCreate(ctx, api.CreateOptions{
		Name: v.Name, Driver: v.Driver, DriverOpts: v.DriverOpts, Labels: labels(v.Labels),
	})
	if err != nil {
		return "", fmt.Errorf("volume %s cannot be created: %w", v.Name, err)
	}
	return made.Name, nil
}

func (v *volume) read(ctx context.Context, d *docker, id string) (map[string]any, error) {
	live, err := d.VolumeInspect(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", id, err)
	}
	return map[string]any{"name": live.Name, "driver": live.Driver, "mountpoint": live.Mountpoint}, nil
}

func (v *volume) update(context.Context, *docker, string, []string) error { return nil }

func (v *volume) remove(ctx context.Context, d *docker, id string) error {
	return released(ctx, func() error { return d.VolumeRemove(ctx, id, true) }, "volume is in use")
}

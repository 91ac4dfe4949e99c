package main

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gobwas/glob"
	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi-go-provider/infer/types"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
)

// A cancelled command gets this long to end by itself.
const cancelGrace = 5 * time.Second

// localCommand is command:local:Command.
type localCommand struct{}

func (c localCommand) Annotate(a infer.Annotator) { a.SetToken("local", "Command") }

type localInputs struct {
	Triggers               *[]any             `pulumi:"triggers,optional" provider:"replaceOnChanges"`
	Create                 *string            `pulumi:"create,optional"`
	Update                 *string            `pulumi:"update,optional"`
	Delete                 *string            `pulumi:"delete,optional"`
	Stdin                  *string            `pulumi:"stdin,optional"`
	Logging                *logging           `pulumi:"logging,optional"`
	Interpreter            *[]string          `pulumi:"interpreter,optional"`
	Dir                    *string            `pulumi:"dir,optional"`
	Environment            *map[string]string `pulumi:"environment,optional"`
	AssetPaths             *[]string          `pulumi:"assetPaths,optional"`
	ArchivePaths           *[]string          `pulumi:"archivePaths,optional"`
	AddPreviousOutputInEnv *bool              `pulumi:"addPreviousOutputInEnv,optional"`
}

type localState struct {
	localInputs
	Stdout  string                            `pulumi:"stdout"`
	Stderr  string                            `pulumi:"stderr"`
	Assets  *map[string]*types.AssetOrArchive `pulumi:"assets,optional"`
	Archive *resource.Archive                 `pulumi:"archive,optional"`
}

func (localCommand) Create(
	ctx context.Context, req infer.CreateRequest[localInputs],
) (infer.CreateResponse[localState], error) {
	resp := infer.CreateResponse[localState]{Output: localState{localInputs: req.Inputs}}
	var err error
	if resp.ID, err = resource.NewUniqueHex(req.Name, 8, 0); err == nil && !req.DryRun {
		err = resp.Output.run(ctx, req.Inputs.Create)
	}
	return resp, err
}

func (localCommand) Update(
	ctx context.Context, req infer.UpdateRequest[localInputs, localState],
) (infer.UpdateResponse[localState], error) {
	s := req.State
	s.localInputs = req.Inputs
	command := s.Update
	if command == nil {
		command = s.Create
	}
	var err error
	if !req.DryRun {
		err = s.run(ctx, command)
	}
	return infer.UpdateResponse[localState]{Output: s}, err
}

func (localCommand) Delete(ctx context.Context, req infer.DeleteRequest[localState]) (infer.DeleteResponse, error) {
	return infer.DeleteResponse{}, req.State.run(ctx, req.State.Delete)
}

// run runs one command, if there is one, and keeps its output.
func (s *localState) run(ctx context.Context, command *string) error {
	if command == nil {
		return nil
	}
	args := []string{"/bin/sh", "-c"}
	if s.Interpreter != nil && len(*s.Interpreter) > 0 {
		args = *s.Interpreter
	}
	dir, err := os.Getwd()
	if s.Dir != nil {
		dir, err = *s.Dir, nil
	}
	if err != nil {
		return err
	}

	cmd := exec.CommandContext(ctx, args[0], append(args[1:len(args):len(args)], *command)...)
	cmd.Dir = dir
	cmd.Env = os.Environ()
	env := previous(s.AddPreviousOutputInEnv, s.Stdout, s.Stderr)
	if s.Environment != nil {
		given := maps.Clone(*s.Environment)
		maps.Copy(given, env)
		env = given
	}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	if s.Stdin != nil {
		cmd.Stdin = strings.NewReader(*s.Stdin)
	}
	var out output
	cmd.Stdout = out.writer(ctx, s.Logging, "stdout")
	cmd.Stderr = out.writer(ctx, s.Logging, "stderr")

	// The command leads a process group of its own, so that cancelling ends what it started as well.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = cancelGrace
	err = cmd.Run()
	if ctx.Err() != nil && cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	stdout, stderr, both := out.end()
	if err != nil {
		return fmt.Errorf("%w: running %q:\n%s", err, *command, both)
	}

	var assets map[string]*types.AssetOrArchive
	if s.AssetPaths != nil {
		if assets, err = matching(dir, *s.AssetPaths); err != nil {
			return fmt.Errorf("assetPaths: %w", err)
		}
		s.Assets = &assets
	}
	if s.ArchivePaths != nil {
		if assets, err = matching(dir, *s.ArchivePaths); err != nil {
			return fmt.Errorf("archivePaths: %w", err)
		}
		files := map[string]any{}
		for path, asset := range assets {
			files[path] = asset.Asset
		}
		if s.Archive, err = resource.NewAssetArchive(files); err != nil {
			return fmt.Errorf("archivePaths: %w", err)
		}
	}
	s.Stdout, s.Stderr = stdout, stderr
	return nil
}

// matching returns the files under dir that the patterns select; the last pattern that matches a file decides, and one
// that begins with "!" leaves it out.
func matching(dir string, patterns []string) (map[string]*types.AssetOrArchive, error) {
	globs := make([]glob.Glob, len(patterns))
	for i, pattern := range patterns {
		var err error
		if globs[i], err = glob.Compile(strings.TrimPrefix(pattern, "!"), '/'); err != nil {
			return nil, fmt.Errorf("%q: %w", pattern, err)
		}
	}
	found := map[string]*types.AssetOrArchive{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		for i, g := range globs {
			if !g.Match(path) {
				continue
			}
			delete(found, path)
			if !strings.HasPrefix(patterns[i], "!") {
				asset, err := resource.NewPathAsset(filepath.Join(dir, path))
				if err != nil {
					return err
				}
				found[path] = &types.AssetOrArchive{Asset: asset}
			}
		}
		return nil
	})
	return found, err
}

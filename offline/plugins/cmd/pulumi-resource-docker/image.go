package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/distribution/reference"
	clibuild "github.com/docker/cli/cli/command/image/build"
	"github.com/docker/docker/api/types/build"
	apiimage "github.com/docker/docker/api/types/image"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/go-archive"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"github.com/tonistiigi/fsutil"
)

// image is docker:index/image:Image.
type image struct {
	ImageName      string         `json:"imageName" prop:"required"`
	Build          imageBuild     `json:"build"`
	Registry       *imageRegistry `json:"registry"`
	SkipPush       bool           `json:"skipPush"`
	BuildOnPreview bool           `json:"buildOnPreview" default:"false"`
}

type imageBuild struct {
	Context        string             `json:"context"`
	Dockerfile     string             `json:"dockerfile"`
	Args           map[string]*string `json:"args"`
	Target         string             `json:"target"`
	Platform       string             `json:"platform"`
	Network        string             `json:"network"`
	AddHosts       []string           `json:"addHosts"`
	BuilderVersion string             `json:"builderVersion"`
	ContextDigest  string             `json:"contextDigest"` // set by checkImage
}

type imageRegistry struct {
	Server   string `json:"server"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// The inputs of the last build lie in the state under this name, secret as a whole.
const lastInputs = "__inputs"

func (d *docker) checkImage(ctx context.Context, req plugin.CheckRequest) (plugin.CheckResponse, error) {
	inputs, failures := checkInputs(req.News, &image{})
	fail := func(property, reason string) {
		failures = append(failures, plugin.CheckFailure{
			Property: resource.PropertyKey(property), Reason: property + ": " + reason,
		})
	}
	respond := func() (plugin.CheckResponse, error) {
		return plugin.CheckResponse{Properties: echo(inputs), Failures: failures}, nil
	}
	if inputs["build"].IsNull() {
		inputs["build"] = resource.NewObjectProperty(resource.PropertyMap{})
	}
	if len(failures) > 0 || !inputs["build"].IsObject() { // wrong, or not known yet
		return respond()
	}
	b := inputs["build"].ObjectValue()

	if b["context"].IsNull() {
		b["context"] = resource.NewStringProperty(".")
	}
	if b["dockerfile"].IsNull() && b["context"].IsString() {
		b["dockerfile"] = resource.NewStringProperty(path.Join(b["context"].StringValue(), "Dockerfile"))
	}
	if b["context"].IsString() && b["dockerfile"].IsString() {
		root, dockerfile := b["context"].StringValue(), b["dockerfile"].StringValue()
		if _, err := os.Stat(dockerfile); err != nil {
			hint := ""
			if nested := filepath.Join(root, dockerfile); !filepath.IsAbs(dockerfile) {
				if _, err := os.Stat(nested); err == nil {
					hint = fmt.Sprintf("; it is relative to the program, not to the context: did you mean %q?", nested)
				}
			}
			fail("build.dockerfile", err.Error()+hint)
			return respond()
		}
		digest, err := contextDigest(root, dockerfile)
		if err != nil {
			fail("build.context", err.Error())
			return respond()
		}
		b["contextDigest"] = resource.NewStringProperty(digest)
	}
	if b["platform"].IsNull() {
		b["platform"] = resource.NewStringProperty("linux/" + runtime.GOARCH)
		d.log(ctx, diag.Info, req.URN, fmt.Sprintf("The image is built for linux/%s. "+
			"To be sure of the platform, set `platform` in the build's arguments.", runtime.GOARCH))
	}
	if v := b["builderVersion"]; v.IsString() && v.StringValue() != "BuilderV1" && v.StringValue() != "BuilderBuildKit" {
		fail("build.builderVersion", fmt.Sprintf("is %q, must be BuilderBuildKit or BuilderV1", v.StringValue()))
	}
	skip := inputs["skipPush"]
	if name := inputs["imageName"]; name.IsString() && !(skip.IsBool() && skip.BoolValue()) && !skip.IsComputed() {
		if _, err := reference.ParseNamed(name.StringValue()); err != nil {
			fail("imageName", fmt.Sprintf("%q cannot be pushed (%v): "+
				"begin it with the registry, as in docker.io/user/image:tag", name.StringValue(), err))
		}
	}
	return respond()
}

// diffImage compares with the inputs of the last build. New credentials alone build nothing.
func diffImage(req plugin.DiffRequest) (plugin.DiffResult, error) {
	last := req.OldOutputs[lastInputs]
	for last.IsSecret() {
		last = last.SecretValue().Element
	}
	olds := resource.PropertyMap{}
	if last.IsObject() {
		olds = last.ObjectValue()
	}
	diff := diffInputs(withoutLogin(olds), withoutLogin(req.NewInputs), &image{})
	// The state has the inputs where the engine does not look: it is to compare the inputs themselves.
	for path, d := range diff.DetailedDiff {
		d.InputDiff = true
		diff.DetailedDiff[path] = d
	}
	return diff, nil
}

func withoutLogin(m resource.PropertyMap) resource.PropertyMap {
	out := m.Copy()
	if r := out["registry"]; r.IsObject() {
		server := resource.PropertyMap{}
		if s := r.ObjectValue()["server"]; !s.IsNull() {
			server["server"] = s
		}
		out["registry"] = resource.NewObjectProperty(server)
	}
	return out
}

func imageID(outputs resource.PropertyMap) resource.ID {
	if name := outputs["baseImageName"]; name.IsString() {
		return resource.ID(name.StringValue())
	}
	return ""
}

// image builds and pushes; a preview builds only where buildOnPreview asks for it, and never pushes.
func (d *docker) image(
	ctx context.Context, urn resource.URN, inputs resource.PropertyMap, preview bool,
) (resource.PropertyMap, error) {
	if preview {
		wanted := inputs["buildOnPreview"]
		if !wanted.IsBool() || !wanted.BoolValue() {
			return inputs, nil
		}
		if inputs.ContainsUnknowns() {
			d.log(ctx, diag.Warning, urn, "buildOnPreview: an input is not known yet, the image is not built")
			return inputs, nil
		}
	}
	var img image
	if err := decode(inputs, &img); err != nil {
		return nil, err
	}
	auth, err := img.login()
	if err != nil {
		return nil, err
	}
	dockerfile, id, err := d.build(ctx, urn, &img, auth)
	if err != nil {
		return nil, fmt.Errorf("image %s cannot be built: %w", img.ImageName, err)
	}
	digest := id
	if !img.SkipPush && !preview {
		if digest, err = d.push(ctx, urn, img.ImageName, auth); err != nil {
			return nil, fmt.Errorf("image %s cannot be pushed: %w", img.ImageName, err)
		}
	}
	server := ""
	if img.Registry != nil {
		server = img.Registry.Server
	}
	return resource.PropertyMap{
		"dockerfile":     resource.NewStringProperty(dockerfile),
		"context":        resource.NewStringProperty(img.Build.Context),
		"baseImageName":  resource.NewStringProperty(img.ImageName),
		"imageName":      resource.NewStringProperty(img.ImageName),
		"registryServer": resource.NewStringProperty(server),
		"platform":       resource.NewStringProperty(img.Build.Platform),
		"repoDigest":     resource.NewStringProperty(digest),
		lastInputs:       resource.MakeSecret(resource.NewObjectProperty(inputs)),
	}, nil
}

// build builds the image and returns the Dockerfile as seen from the context, and the image's ID.
func (d *docker) build(ctx context.Context, urn resource.URN, img *image, auth *credentials) (string, string, error) {
	root, dockerfile, err := clibuild.GetContextFromLocalDir(img.Build.Context, img.Build.Dockerfile)
	if err != nil {
		return "", "", err
	}
	excludes, err := ignorePatterns(img.Build.Context, img.Build.Dockerfile)
	if err != nil {
		return "", "", err
	}
	if err := clibuild.ValidateContextDirectory(root, excludes); err != nil {
		return "", "", err
	}
	files, err := archive.TarWithOptions(root, &archive.TarOptions{
		ExcludePatterns: clibuild.TrimBuildFilesFromExcludes(excludes, dockerfile, false),
		ChownOpts:       &archive.ChownOpts{UID: 0, GID: 0},
	})
	if err != nil {
		return "", "", err
	}
	defer func() { files.Close() }()
	inContext := dockerfile
	if strings.HasPrefix(dockerfile, "../") {
		text, err := os.Open(img.Build.Dockerfile)
		if err != nil {
			return "", "", err
		}
		if files, inContext, err = clibuild.AddDockerfileToBuildContext(text, files); err != nil {
			return "", "", err
		}
	}

	options := build.ImageBuildOptions{
		Tags: []string{img.ImageName}, Dockerfile: inContext, BuildArgs: img.Build.Args, Target: img.Build.Target,
		Platform: img.Build.Platform, NetworkMode: img.Build.Network, ExtraHosts: img.Build.AddHosts,
		AuthConfigs: auth.all(), Version: build.BuilderBuildKit,
		Remove: true, ForceRemove: true, // the classic builder's containers
	}
	if img.Build.BuilderVersion == "BuilderV1" {
		options.Version = build.BuilderV1
	} else {
		// BuildKit asks for the registries' logins through a session of its own.
		s, err := session.NewSession(ctx, "")
		if err != nil {
			return "", "", err
		}
		defer s.Close()
		s.Allow(authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{ConfigFile: auth.file}))
		go func() {
			if err := s.Run(ctx, func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
				return d.DialHijack(ctx, "/session", proto, meta)
			}); err != nil && ctx.Err() == nil {
				d.log(ctx, diag.Warning, urn, "the session with BuildKit broke: "+err.Error())
			}
		}()
		options.SessionID = s.ID()
	}
	d.status(ctx, urn, "Building "+img.ImageName)
	resp, err := d.ImageBuild(ctx, files, options)
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	var built build.Result
	p := progress{show: func(s string) { d.status(ctx, urn, s) }, aux: func(m json.RawMessage) { _ = json.Unmarshal(m, &built) }}
	if err := p.follow(resp.Body); err != nil {
		return "", "", err
	}
	if built.ID == "" {
		return "", "", errors.New("the engine reports neither an error nor an image")
	}
	return dockerfile, built.ID, nil
}

// push pushes the image and returns it by digest.
func (d *docker) push(ctx context.Context, urn resource.URN, name string, auth *credentials) (string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", err
	}
	encoded, err := auth.encoded()
	if err != nil {
		return "", err
	}
	d.status(ctx, urn, "Pushing "+name)
	body, err := d.ImagePush(ctx, name, apiimage.PushOptions{RegistryAuth: encoded})
	if err != nil {
		return "", err
	}
	defer body.Close()
	var pushed struct{ Digest string }
	p := progress{show: func(s string) { d.status(ctx, urn, s) }, aux: func(m json.RawMessage) { _ = json.Unmarshal(m, &pushed) }}
	if err := p.follow(body); err != nil {
		return "", err
	}
	if pushed.Digest == "" {
		return "", errors.New("the engine reports no digest")
	}
	return reference.TrimNamed(named).String() + "@" + pushed.Digest, nil
}

// ensureImage pulls an image that the engine does not have.
func (d *docker) ensureImage(ctx context.Context, urn resource.URN, name, platform string) error {
	_, err := d.ImageInspect(ctx, name)
	if err == nil || !isNotFound(err) {
		return err
	}
	auth, err := d.loginFor(name)
	if err != nil {
		return err
	}
	encoded, err := auth.encoded()
	if err != nil {
		return err
	}
	d.status(ctx, urn, "Pulling "+name)
	body, err := d.ImagePull(ctx, name, apiimage.PullOptions{RegistryAuth: encoded, Platform: platform})
	if err != nil {
		return fmt.Errorf("is not there and cannot be pulled: %w", err)
	}
	defer body.Close()
	p := progress{show: func(s string) { d.status(ctx, urn, s) }}
	return p.follow(body)
}

// ignorePatterns are those of the Dockerfile's own .dockerignore, or else of the context's.
func ignorePatterns(root, dockerfile string) ([]string, error) {
	for _, name := range []string{dockerfile + ".dockerignore", filepath.Join(root, ".dockerignore")} {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		patterns, err := ignorefile.ReadAll(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return patterns, nil
	}
	return nil, nil
}

// contextDigest is a checksum of everything that goes into the build: name, mode and content of each file that is not
// ignored. It is the released plugin's, so that changing plugins rebuilds nothing.
func contextDigest(root, dockerfile string) (string, error) {
	excludes, err := ignorePatterns(root, dockerfile)
	if err != nil {
		return "", err
	}
	all := sha256.New()
	add := func(file, name string, mode fs.FileMode) error {
		one := sha256.New()
		switch {
		case mode.Type() == fs.ModeSymlink:
			target, err := filepath.EvalSymlinks(file)
			if err != nil {
				return err
			}
			io.WriteString(one, filepath.ToSlash(target))
		case mode.IsRegular():
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := io.Copy(one, f); err != nil {
				return err
			}
		}
		io.WriteString(all, filepath.ToSlash(path.Clean(name))+mode.String())
		all.Write(append(one.Sum(nil), 0))
		return nil
	}
	if err := add(dockerfile, "Dockerfile", 0); err != nil {
		return "", err
	}
	err = fsutil.Walk(context.Background(), root, &fsutil.FilterOpt{ExcludePatterns: excludes},
		func(name string, info fs.FileInfo, err error) error {
			if err != nil || info.IsDir() {
				return err
			}
			return add(filepath.Join(root, name), name, info.Mode())
		})
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(all.Sum(nil)), nil
}

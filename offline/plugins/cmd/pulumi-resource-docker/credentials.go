package main

import (
	"fmt"
	"os"

	"github.com/distribution/reference"
	cliconfig "github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	clicredentials "github.com/docker/cli/cli/config/credentials"
	"github.com/docker/cli/cli/config/types"
	"github.com/docker/docker/api/types/registry"
)

// The name under which Docker Hub's login is kept.
const dockerHub = "https://index.docker.io/v1/"

// credentials are the logins of the user's Docker configuration, and the one for the registry at hand.
type credentials struct {
	file *configfile.ConfigFile
	here registry.AuthConfig
}

// newCredentials looks the registry's login up, unless a user name and a password are given.
func newCredentials(server, user, password string) (*credentials, error) {
	file := cliconfig.LoadDefaultConfigFile(os.Stderr)
	if user == "" || password == "" {
		known, err := file.GetAuthConfig(server)
		if err != nil {
			return nil, fmt.Errorf("the login for %s: %w", server, err)
		}
		return &credentials{file: file, here: registry.AuthConfig(known)}, nil
	}
	given := types.AuthConfig{Username: user, Password: password, ServerAddress: server}
	// A credential store would be asked instead of what is given here.
	file.CredentialsStore, file.CredentialHelpers = "", nil
	file.AuthConfigs[server] = given
	return &credentials{file: file, here: registry.AuthConfig(given)}, nil
}

// login is the one for the image's registry.
func (i *image) login() (*credentials, error) {
	r := i.Registry
	if r == nil {
		r = &imageRegistry{}
	}
	server, err := serverOf(r.Server, i.ImageName)
	if err != nil {
		return nil, err
	}
	return newCredentials(server, r.Username, r.Password)
}

// loginFor is the one for a registry to pull from: from the provider's registryAuth, or the Docker configuration.
func (d *docker) loginFor(name string) (*credentials, error) {
	server, err := serverOf("", name)
	if err != nil {
		return nil, err
	}
	for _, a := range d.config.RegistryAuth {
		if at, err := serverOf(a.Address, name); err == nil && at == server {
			return newCredentials(server, a.Username, a.Password)
		}
	}
	return newCredentials(server, "", "")
}

// serverOf is the key of a registry's login: from its address, or else from an image's name.
func serverOf(address, name string) (string, error) {
	server := clicredentials.ConvertToHostname(address)
	if address == "" {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return "", fmt.Errorf("image name %q: %w", name, err)
		}
		server = reference.Domain(named)
	}
	switch server {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return dockerHub, nil
	}
	return server, nil
}

func (c *credentials) encoded() (string, error) { return registry.EncodeAuthConfig(c.here) }

func (c *credentials) all() map[string]registry.AuthConfig {
	out := map[string]registry.AuthConfig{}
	known, err := c.file.GetAllCredentials()
	if err != nil { // a helper that is not there must not stop a build that may not need it
		known = c.file.AuthConfigs
	}
	for server, auth := range known {
		out[server] = registry.AuthConfig(auth)
	}
	return out
}

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/retry"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// endpoint is one SSH server and how to log in to it.
type endpoint struct {
	Host               *string  `pulumi:"host"`
	Port               *float64 `pulumi:"port,optional"`
	User               *string  `pulumi:"user,optional"`
	Password           *string  `pulumi:"password,optional" provider:"secret"`
	PrivateKey         *string  `pulumi:"privateKey,optional" provider:"secret"`
	PrivateKeyPassword *string  `pulumi:"privateKeyPassword,optional" provider:"secret"`
	HostKey            *string  `pulumi:"hostKey,optional"`
	AgentSocketPath    *string  `pulumi:"agentSocketPath,optional"`
	DialErrorLimit     *int     `pulumi:"dialErrorLimit,optional"`
	PerDialTimeout     *int     `pulumi:"perDialTimeout,optional"`
}

func (e *endpoint) defaults(a infer.Annotator) {
	a.SetDefault(&e.Port, 22)
	a.SetDefault(&e.User, "root")
	a.SetDefault(&e.DialErrorLimit, 10)
	a.SetDefault(&e.PerDialTimeout, 15)
}

type connection struct {
	endpoint
	Proxy *proxy `pulumi:"proxy,optional"`
}

type proxy struct{ endpoint }

func (c *connection) Annotate(a infer.Annotator) { c.defaults(a) }
func (c *proxy) Annotate(a infer.Annotator)      { c.defaults(a) }

// dialer opens a TCP connection: from here, or through the proxy.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// dial connects to the host, through the proxy if there is one. Closing the client closes both.
func (c *connection) dial(ctx context.Context) (*ssh.Client, error) {
	if c.Proxy == nil {
		return c.endpoint.dial(ctx, "Dial", (&net.Dialer{}).DialContext)
	}
	hop, err := c.Proxy.dial(ctx, "Dial proxy", (&net.Dialer{}).DialContext)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	client, err := c.endpoint.dial(ctx, "Dial from proxy", hop.DialContext)
	if err != nil {
		hop.Close()
		return nil, err
	}
	go func() {
		_ = client.Wait()
		hop.Close()
	}()
	return client, nil
}

// dial tries until the server lets us in, dialErrorLimit is reached (-1: never) or the run is cancelled.
func (e *endpoint) dial(ctx context.Context, what string, dial dialer) (*ssh.Client, error) {
	config, closeAgent, err := e.config()
	if err != nil {
		return nil, err
	}
	defer closeAgent()
	limit := *e.DialErrorLimit
	var last error
	ok, client, err := retry.Until(ctx, retry.Acceptor{Accept: func(try int, _ time.Duration) (bool, any, error) {
		var client *ssh.Client
		if client, last = e.dialOnce(ctx, config, dial); last == nil {
			return true, client, nil
		}
		if limit >= 0 && try+1 > limit {
			return true, nil, fmt.Errorf("%s: after %d failed attempts: %w", e.address(), try, last)
		}
		of := strconv.Itoa(limit)
		if limit < 0 {
			of = "inf"
		}
		p.GetLogger(ctx).InfoStatusf("%s %d/%s failed: retrying", what, try+1, of)
		return false, nil, nil
	}})
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, fmt.Errorf("%s: %w; the last attempt to connect: %v", e.address(), context.Cause(ctx), last)
	}
	return client.(*ssh.Client), nil
}

// dialOnce bounds the handshake as well as the connect: a host that accepts and then says nothing must not hang us.
func (e *endpoint) dialOnce(ctx context.Context, config *ssh.ClientConfig, dial dialer) (*ssh.Client, error) {
	if config.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, config.Timeout)
		defer cancel()
	}
	conn, err := dial(ctx, "tcp", e.address())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	sshConn, channels, requests, err := ssh.NewClientConn(conn, e.address(), config)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return ssh.NewClient(sshConn, channels, requests), nil
}

func (e *endpoint) address() string {
	return net.JoinHostPort(*e.Host, strconv.Itoa(int(*e.Port)))
}

// config says who we are and whom we expect. The returned function closes the connection to the SSH agent.
func (e *endpoint) config() (*ssh.ClientConfig, func(), error) {
	closeAgent := func() {}
	config := &ssh.ClientConfig{
		User:            *e.User,
		Timeout:         time.Duration(*e.PerDialTimeout) * time.Second,
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // as the released plugin does when no key is given
	}
	if e.HostKey != nil {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(*e.HostKey))
		if err != nil {
			return nil, nil, fmt.Errorf("connection.hostKey is not a public key in authorized_keys format: %w", err)
		}
		config.HostKeyCallback = ssh.FixedHostKey(key)
		config.HostKeyAlgorithms = []string{key.Type()}
		if key.Type() == ssh.KeyAlgoRSA { // an RSA key signs with SHA-2 too, and current servers with nothing else
			config.HostKeyAlgorithms = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
		}
	}
	if e.PrivateKey != nil {
		parse := ssh.ParsePrivateKey
		if e.PrivateKeyPassword != nil {
			parse = func(pem []byte) (ssh.Signer, error) {
				return ssh.ParsePrivateKeyWithPassphrase(pem, []byte(*e.PrivateKeyPassword))
			}
		}
		signer, err := parse([]byte(*e.PrivateKey))
		if err != nil {
			return nil, nil, fmt.Errorf("connection.privateKey cannot be read: %w", err)
		}
		config.Auth = append(config.Auth, ssh.PublicKeys(signer))
	}
	if e.Password != nil {
		config.Auth = append(config.Auth, ssh.Password(*e.Password), ssh.KeyboardInteractive(
			func(_, _ string, questions []string, _ []bool) ([]string, error) {
				answers := make([]string, len(questions))
				for i := range answers {
					answers[i] = *e.Password
				}
				return answers, nil
			}))
	}
	socket := os.Getenv("SSH_AUTH_SOCK")
	if e.AgentSocketPath != nil {
		socket = *e.AgentSocketPath
	}
	if socket != "" {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return nil, nil, fmt.Errorf("the SSH agent (connection.agentSocketPath or SSH_AUTH_SOCK): %w", err)
		}
		closeAgent = func() { conn.Close() }
		config.Auth = append(config.Auth, ssh.PublicKeysCallback(agent.NewClient(conn).Signers))
	}
	return config, closeAgent, nil
}

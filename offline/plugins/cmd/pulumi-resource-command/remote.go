package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"golang.org/x/crypto/ssh"
)

// remoteCommand is command:remote:Command.
type remoteCommand struct{}

func (c remoteCommand) Annotate(a infer.Annotator) { a.SetToken("remote", "Command") }

type remoteInputs struct {
	Triggers               *[]any             `pulumi:"triggers,optional" provider:"replaceOnChanges"`
	Create                 *string            `pulumi:"create,optional"`
	Update                 *string            `pulumi:"update,optional"`
	Delete                 *string            `pulumi:"delete,optional"`
	Stdin                  *string            `pulumi:"stdin,optional"`
	Logging                *logging           `pulumi:"logging,optional"`
	Connection             *connection        `pulumi:"connection" provider:"secret"`
	Environment            *map[string]string `pulumi:"environment,optional"`
	AddPreviousOutputInEnv *bool              `pulumi:"addPreviousOutputInEnv,optional"`
}

type remoteState struct {
	remoteInputs
	Stdout string `pulumi:"stdout"`
	Stderr string `pulumi:"stderr"`
}

func (remoteCommand) Create(
	ctx context.Context, req infer.CreateRequest[remoteInputs],
) (infer.CreateResponse[remoteState], error) {
	resp := infer.CreateResponse[remoteState]{Output: remoteState{remoteInputs: req.Inputs}}
	var err error
	if resp.ID, err = resource.NewUniqueHex(req.Name, 8, 0); err == nil && !req.DryRun {
		err = resp.Output.run(ctx, req.Inputs.Create)
	}
	return resp, err
}

func (remoteCommand) Update(
	ctx context.Context, req infer.UpdateRequest[remoteInputs, remoteState],
) (infer.UpdateResponse[remoteState], error) {
	s := req.State
	s.remoteInputs = req.Inputs
	command := s.Update
	if command == nil {
		command = s.Create
	}
	var err error
	if !req.DryRun {
		err = s.run(ctx, command)
	}
	return infer.UpdateResponse[remoteState]{Output: s}, err
}

func (remoteCommand) Delete(ctx context.Context, req infer.DeleteRequest[remoteState]) (infer.DeleteResponse, error) {
	return infer.DeleteResponse{}, req.State.run(ctx, req.State.Delete)
}

// run runs one command on the host, if there is one, and keeps its output.
func (s *remoteState) run(ctx context.Context, command *string) error {
	if command == nil {
		return nil
	}
	client, err := s.Connection.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return err
	}
	defer session.Close()

	const hint = "the SSH server takes only the variables that its AcceptEnv names; " +
		"write the assignment in the command instead: 'NAME=value command'"
	if s.Environment != nil {
		for k, v := range *s.Environment {
			if err := session.Setenv(k, v); err != nil {
				return fmt.Errorf("environment: %q cannot be set (%w): %s", k, err, hint)
			}
		}
	}
	for k, v := range previous(s.AddPreviousOutputInEnv, s.Stdout, s.Stderr) {
		if err := session.Setenv(k, v); err != nil {
			p.GetLogger(ctx).Warningf("%q cannot be set: %s", k, hint)
		}
	}
	if s.Stdin != nil {
		session.Stdin = strings.NewReader(*s.Stdin)
	}
	var out output
	session.Stdout = out.writer(ctx, s.Logging, "stdout")
	session.Stderr = out.writer(ctx, s.Logging, "stderr")

	done := make(chan struct{})
	defer close(done)
	stop := context.AfterFunc(ctx, func() {
		_ = session.Signal(ssh.SIGTERM)
		select {
		case <-done:
		case <-time.After(cancelGrace):
			_ = session.Signal(ssh.SIGKILL)
			_ = client.Close()
		}
	})
	defer stop()

	err = session.Run(*command)
	stdout, stderr, both := out.end()
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("cancelled: %w", err)
		}
		return fmt.Errorf("%w: running %q:\n%s", err, *command, both)
	}
	s.Stdout, s.Stderr = stdout, stderr
	return nil
}

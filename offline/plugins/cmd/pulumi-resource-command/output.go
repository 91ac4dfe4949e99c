package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"
)

// logging says which streams are shown while a command runs; both are always kept as outputs.
type logging string

func (logging) Values() []infer.EnumValue[logging] {
	return []infer.EnumValue[logging]{{Value: "stdout"}, {Value: "stderr"}, {Value: "stdoutAndStderr"}, {Value: "none"}}
}

func (l *logging) shows(stream logging) bool {
	return l == nil || *l == "stdoutAndStderr" || *l == stream
}

// output keeps what a command prints: each stream for the outputs, both in order for an error's message.
type output struct {
	stdout, stderr, both bytes.Buffer
	mu                   sync.Mutex
	flush                []func()
}

// writer returns where one stream goes: its buffer, the common one and, line by line, the engine's log.
func (o *output) writer(ctx context.Context, l *logging, stream logging) io.Writer {
	buf := &o.stdout
	if stream == "stderr" {
		buf = &o.stderr
	}
	var line bytes.Buffer
	show := func() {
		if line.Len() > 0 {
			p.GetLogger(ctx).InfoStatus(strings.TrimRight(line.String(), "\r\n"))
			line.Reset()
		}
	}
	o.flush = append(o.flush, show)
	return writerFunc(func(b []byte) (int, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		buf.Write(b)
		o.both.Write(b)
		if !l.shows(stream) {
			return len(b), nil
		}
		for part := range bytes.Lines(b) {
			line.Write(part)
			if part[len(part)-1] == '\n' {
				show()
			}
		}
		return len(b), nil
	})
}

// end logs what the command printed after its last newline, and returns the streams.
func (o *output) end() (stdout, stderr, both string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, show := range o.flush {
		show()
	}
	return strings.TrimSuffix(o.stdout.String(), "\n"), strings.TrimSuffix(o.stderr.String(), "\n"), o.both.String()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// previous returns the earlier run's output as the variables that update and delete commands get.
func previous(wanted *bool, stdout, stderr string) map[string]string {
	env := map[string]string{}
	if wanted == nil || *wanted {
		if stdout != "" {
			env["PULUMI_COMMAND_STDOUT"] = stdout
		}
		if stderr != "" {
			env["PULUMI_COMMAND_STDERR"] = stderr
		}
	}
	return env
}

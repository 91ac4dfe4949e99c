package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/pkg/jsonmessage"
	controlapi "github.com/moby/buildkit/api/services/control"
)

// An error shows that many lines of what the failing step printed.
const tailLines = 50

// progress follows the engine's messages about a build, a push or a pull.
type progress struct {
	show func(string)
	aux  func(json.RawMessage)

	bar   time.Time          // of the last progress bar shown
	lines []string           // classic builder: the last ones
	steps map[string]*step   // BuildKit: by digest
	fault *controlapi.Vertex // BuildKit: the step that failed
}

type step struct {
	name  string
	lines []string
}

// follow returns once everything is done, with the error if the engine reports one.
func (p *progress) follow(in io.Reader) error {
	p.steps = map[string]*step{}
	decoder := json.NewDecoder(in)
	for {
		var m jsonmessage.JSONMessage
		err := decoder.Decode(&m)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, context.Canceled):
			return errors.New("cancelled")
		case err != nil:
			return fmt.Errorf("the engine's answer ends early: %w", err)
		case m.Error != nil:
			return p.failure(m.Error)
		case m.Aux != nil && m.ID == "moby.buildkit.trace":
			p.trace(*m.Aux)
		case m.Aux != nil:
			if p.aux != nil {
				p.aux(*m.Aux)
			}
		case m.Stream != "":
			p.print(&p.lines, m.Stream)
		case m.Progress != nil && m.Progress.Total > 0:
			if time.Since(p.bar) > 200*time.Millisecond { // hundreds a second otherwise
				p.bar = time.Now()
				p.show(strings.TrimSpace(m.ID + " " + m.Status + " " + m.Progress.String()))
			}
		case m.Status != "":
			p.show(strings.TrimSpace(m.ID + " " + m.Status))
		}
	}
}

// trace shows what BuildKit reports: each step by its name, then what it prints.
func (p *progress) trace(aux json.RawMessage) {
	var encoded []byte
	var status controlapi.StatusResponse
	if json.Unmarshal(aux, &encoded) != nil || status.UnmarshalVT(encoded) != nil {
		return
	}
	of := func(digest string) *step {
		if p.steps[digest] == nil {
			p.steps[digest] = &step{}
		}
		return p.steps[digest]
	}
	for _, v := range status.Vertexes {
		s := of(v.Digest)
		if s.name == "" && v.Started != nil {
			s.name = v.Name
			p.show(v.Name)
		}
		if v.Error != "" && !strings.HasSuffix(v.Error, "context canceled") {
			p.fault = v
		}
	}
	for _, l := range status.Logs {
		p.print(&of(l.Vertex).lines, string(l.Msg))
	}
	for _, w := range status.Warnings {
		p.show(string(w.Short))
	}
}

// print shows text and keeps its last lines.
func (p *progress) print(kept *[]string, text string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			p.show(line)
			*kept = append(*kept, line)
		}
	}
	if extra := len(*kept) - tailLines; extra > 0 {
		*kept = (*kept)[extra:]
	}
}

func (p *progress) failure(err *jsonmessage.JSONError) error {
	text, lines := err.Message, p.lines
	if p.fault != nil {
		text += "\n" + p.fault.Name
		lines = p.steps[p.fault.Digest].lines
	}
	return errors.New(strings.Join(append([]string{text}, lines...), "\n"))
}

func isNotFound(err error) bool { return errdefs.IsNotFound(err) }

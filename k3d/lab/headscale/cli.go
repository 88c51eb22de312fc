// SPDX-License-Identifier: BSD-3-Clause

package headscale

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Node is a node as "headscale nodes list" shows it.
type Node struct {
	ID         uint64   `json:"id"`
	MachineKey string   `json:"machine_key"`
	NodeKey    string   `json:"node_key"`
	Addresses  []string `json:"ip_addresses"`
	Hostname   string   `json:"name"`       // as the node asked for it
	Name       string   `json:"given_name"` // first label of its MagicDNS name
	Tags       []string `json:"tags"`
	Online     bool     `json:"online"`
	Expiry     *stamp   `json:"expiry"`
	PreAuthKey *struct {
		ID        uint64 `json:"id"`
		Ephemeral bool   `json:"ephemeral"`
	} `json:"pre_auth_key"`
}

// stamp is a protobuf Timestamp as the CLI writes it.
type stamp struct {
	Seconds int64 `json:"seconds"`
	Nanos   int64 `json:"nanos"`
}

// Expired reports whether the node's key has expired, as a log-out has it.
func (n Node) Expired() bool {
	return n.Expiry != nil && n.Expiry.Seconds > 0 && time.Unix(n.Expiry.Seconds, n.Expiry.Nanos).Before(time.Now())
}

// CLI runs a command of Headscale's and returns its standard output, JSON.
func (s *Server) CLI(ctx context.Context, args ...string) ([]byte, error) {
	args = append([]string{"-c", s.path("config.yaml"), "-o", "json", "--force"}, args...)
	cmd := exec.CommandContext(ctx, s.cfg.Binary, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("headscale %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(append(errs.Bytes(), out.Bytes()...)))
	}
	return out.Bytes(), nil
}

// KeyConfig describes a pre-auth key. Without tags it is the user's.
type KeyConfig struct {
	User                uint64 // of CreateUser; 0 for a key that is its tags' alone
	Reusable, Ephemeral bool
	Tags                []string
	Life                time.Duration // 0 is an hour
}

// CreateUser returns the new user's ID.
func (s *Server) CreateUser(ctx context.Context, name string) (uint64, error) {
	var user struct {
		ID uint64 `json:"id"`
	}
	return user.ID, s.ask(ctx, &user, "users", "create", name)
}

// CreateKey returns the ID and the secret of a new pre-auth key.
func (s *Server) CreateKey(ctx context.Context, cfg KeyConfig) (id uint64, secret string, err error) {
	args := []string{"preauthkeys", "create", "--reusable=" + strconv.FormatBool(cfg.Reusable), "--ephemeral=" + strconv.FormatBool(cfg.Ephemeral)}
	if cfg.User != 0 {
		args = append(args, "--user", strconv.FormatUint(cfg.User, 10))
	}
	if len(cfg.Tags) > 0 {
		args = append(args, "--tags", strings.Join(cfg.Tags, ","))
	}
	if cfg.Life != 0 {
		args = append(args, "--expiration", cfg.Life.String())
	}
	var key struct {
		ID  uint64 `json:"id"`
		Key string `json:"key"`
	}
	err = s.ask(ctx, &key, args...)
	return key.ID, key.Key, err
}

// ExpireKey ends a pre-auth key (0.28 and later).
func (s *Server) ExpireKey(ctx context.Context, id uint64) error {
	_, err := s.CLI(ctx, "preauthkeys", "expire", "--id", strconv.FormatUint(id, 10))
	return err
}

// Nodes lists all nodes, ordered by ID.
func (s *Server) Nodes(ctx context.Context) (nodes []Node, err error) {
	if err := s.ask(ctx, &nodes, "nodes", "list"); err != nil {
		return nil, err
	}
	slices.SortFunc(nodes, func(a, b Node) int { return int(a.ID) - int(b.ID) })
	return nodes, nil
}

// Delete removes a node.
func (s *Server) Delete(ctx context.Context, id uint64) error {
	_, err := s.CLI(ctx, "nodes", "delete", "-i", strconv.FormatUint(id, 10))
	return err
}

// Expire ends a node's login, as an admin does; with until later than now it
// ends then. The zero time is now.
func (s *Server) Expire(ctx context.Context, id uint64, until time.Time) error {
	args := []string{"nodes", "expire", "-i", strconv.FormatUint(id, 10)}
	if !until.IsZero() {
		args = append(args, "--expiry", until.UTC().Format(time.RFC3339))
	}
	_, err := s.CLI(ctx, args...)
	return err
}

// Unexpire takes a node's expiry away.
func (s *Server) Unexpire(ctx context.Context, id uint64) error {
	_, err := s.CLI(ctx, "nodes", "expire", "-i", strconv.FormatUint(id, 10), "--disable")
	return err
}

// ask decodes a command's answer.
func (s *Server) ask(ctx context.Context, out any, args ...string) error {
	answer, err := s.CLI(ctx, args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("reading the answer to headscale %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

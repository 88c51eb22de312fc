// SPDX-License-Identifier: BSD-3-Clause

// Package logging makes the process's log, and keeps secrets out of it: those of the
// configuration, and all that has the shape of one, are cut out.
//
// It decides nothing about what is logged, and at which level.
package logging

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/config"
)

// New writes to w what the configuration asks for, and no secret.
func New(cfg config.Config, w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.LogLevel, ReplaceAttr: nameTrace}
	w = &redactor{w: w, known: secretsOf(cfg)}
	if cfg.LogJSON {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// TakeStandardLog has the standard library's logger, and slog's default one, write
// to log at debug level: Tailscale's TLS code, for one, says there which certificate
// it does not trust.
func TakeStandardLog(log *slog.Logger) {
	slog.SetDefault(log.With("from", "log"))
	slog.SetLogLoggerLevel(slog.LevelDebug)
}

// Error logs each line of an error.
func Error(log *slog.Logger, msg string, err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		log.Error(msg, "err", line)
	}
}

// nameTrace calls the level below debug by its name.
func nameTrace(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.LevelKey && len(groups) == 0 {
		if l, ok := a.Value.Any().(slog.Level); ok && l <= engine.LevelTrace {
			return slog.String(slog.LevelKey, "TRACE")
		}
	}
	return a
}

// secretsOf are the secrets of the configuration in the forms that a log may have: plain, and
// quoted. One that is too short to be one is left out.
func secretsOf(c config.Config) (known [][]byte) {
	add := func(s string) {
		for _, form := range []string{s, strings.Trim(fmt.Sprintf("%q", s), `"`)} {
			if len(form) >= 6 && !slices.ContainsFunc(known, func(k []byte) bool { return string(k) == form }) {
				known = append(known, []byte(form))
			}
		}
	}
	for _, each := range append([]config.Config{c}, slices.Collect(maps.Values(c.Profiles))...) {
		add(each.OAuthSecret)
		add(each.AuthKey)
	}
	// The longest first: one may be a part of another.
	slices.SortFunc(known, func(a, b []byte) int { return cmp.Compare(len(b), len(a)) })
	return known
}

// redactor is a log's writer that lets no secret pass: the configuration's own, and
// what looks like one in a text of Tailscale's client, of a control plane or of an
// API. No part of this program writes a secret; this is for texts of others. A
// handler of slog writes each line in one call, and so it is redacted as a whole.
type redactor struct {
	w     io.Writer
	known [][]byte
}

const redacted = "[redacted]"

// RedactText returns what takes secrets out of a text, as a log's writer does.
func RedactText(cfg config.Config) func(string) string {
	r := &redactor{known: secretsOf(cfg)}
	return func(text string) string { return string(r.redact([]byte(text))) }
}

// shapes match secrets, each with a text that every match contains: to
// look for that is a tenth of the cost.
var shapes = []struct {
	hint string
	re   *regexp.Regexp
	with string
}{
	// The ID of a Tailscale or Headscale key stays: it is needed to revoke the key.
	{"tskey-", regexp.MustCompile(`(tskey-(?:[a-z]+-)?(?:[A-Za-z0-9]+-)?)[A-Za-z0-9]{6,}`), "${1}" + redacted},
	{"hskey-", regexp.MustCompile(`(hskey-[a-z]+-(?:[A-Za-z0-9_]+-)?)[A-Za-z0-9_-]{6,}`), "${1}" + redacted},
	{"privkey:", regexp.MustCompile(`(privkey:)[0-9a-f]+`), "${1}" + redacted},
	{"nlpriv:", regexp.MustCompile(`(nlpriv:)[0-9a-f]+`), "${1}" + redacted},
	{"private_key=", regexp.MustCompile(`((?:private|preshared)_key=)[0-9a-f]+`), "${1}" + redacted},
	// A JSON Web Token, as a service account's.
	{"eyJ", regexp.MustCompile(`eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?`), redacted},
	{"earer ", regexp.MustCompile(`([Bb]earer )[\w.~+/-]{6,}=*`), "${1}" + redacted},
	// Opening a login URL puts the node into the opener's tailnet; the plugin opens none.
	{"://", regexp.MustCompile(`(https?://[^\s"\\/]+/(?:a|register|login)/)[^\s"\\]+`), "${1}" + redacted},
	{"@", regexp.MustCompile(`(://[^\s"\\/:@]*:)[^\s"\\/@]+@`), "${1}" + redacted + "@"},
}

// Write writes p without secrets. It reports len(p) for what was written.
func (r *redactor) Write(p []byte) (int, error) {
	if _, err := r.w.Write(r.redact(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (r *redactor) redact(p []byte) []byte {
	for _, secret := range r.known {
		if bytes.Contains(p, secret) {
			p = bytes.ReplaceAll(p, secret, []byte(redacted))
		}
	}
	for _, s := range shapes {
		if bytes.Contains(p, []byte(s.hint)) {
			p = s.re.ReplaceAll(p, []byte(s.with))
		}
	}
	return p
}

// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// logLine is one line of the plugin's log.
type logLine struct {
	text, level, msg, pod string
	attrs                 map[string]any
}

func (l logLine) from() string { from, _ := l.attrs["from"].(string); return from }

// isDetail reports whether it is below info level, or says how slow the machine is.
func (l logLine) isDetail() bool {
	return l.level == "DEBUG" || l.level == "TRACE" || l.msg == "hook done"
}

// isLike reports whether both have the same level, message and keys.
func (l logLine) isLike(other logLine) bool {
	keys := func(l logLine) []string { return slices.Sorted(maps.Keys(l.attrs)) }
	return l.level == other.level && l.msg == other.msg && slices.Equal(keys(l), keys(other))
}

// same reports whether both say the same, at whatever time.
func (l logLine) same(other logLine) bool {
	a, b := maps.Clone(l.attrs), maps.Clone(other.attrs)
	delete(a, "time")
	delete(b, "time")
	return fmt.Sprint(a) == fmt.Sprint(b)
}

// text is all that the plugin's processes have written.
func (r *logRun) text() string {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.Lab.Dir(), "log", "plugin.log"))
	r.must(err)
	return string(text)
}

// parse reads the log as far as it is written, in either format.
func (r *logRun) parse() (lines []logLine) {
	for text := range strings.Lines(r.text()) {
		if l, err := parseLine(strings.TrimSuffix(text, "\n")); err == nil {
			lines = append(lines, l)
		}
	}
	return lines
}

// read is parse once all is written: each line has the format.
func (r *logRun) read(format string) (lines []logLine) {
	r.t.Helper()
	for text := range strings.Lines(r.text()) {
		l, err := parseLine(strings.TrimSuffix(text, "\n"))
		if err != nil || strings.HasPrefix(text, "{") != (format == "json") {
			r.t.Errorf("not a line of the format %s: %q, %v", format, text, err)
			continue
		}
		lines = append(lines, l)
	}
	return lines
}

// textPair is one of the text format's.
var textPair = regexp.MustCompile(`^([^\s="]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?: |$)`)

func parseLine(text string) (logLine, error) {
	l := logLine{text: text, attrs: map[string]any{}}
	if strings.HasPrefix(text, "{") {
		if err := json.Unmarshal([]byte(text), &l.attrs); err != nil {
			return l, err
		}
	} else {
		for rest := text; rest != ""; {
			m := textPair.FindStringSubmatch(rest)
			if m == nil {
				return l, fmt.Errorf("neither key nor value: %q", rest)
			}
			value := m[2]
			if strings.HasPrefix(value, `"`) {
				var err error
				if value, err = strconv.Unquote(value); err != nil {
					return l, err
				}
			}
			l.attrs[m[1]], rest = value, rest[len(m[0]):]
		}
	}
	l.level, _ = l.attrs["level"].(string)
	l.msg, _ = l.attrs["msg"].(string)
	l.pod, _ = l.attrs["pod"].(string)
	at, _ := l.attrs["time"].(string)
	if _, err := time.Parse(time.RFC3339, at); err != nil || l.level == "" || l.msg == "" {
		return l, fmt.Errorf("no time, level or message: %w", err)
	}
	return l, nil
}

var (
	keyText  = regexp.MustCompile(`(?:privkey|nlpriv):([0-9a-f]{64})`)
	keyBytes = regexp.MustCompile(`"[A-Za-z0-9+/]{42,}={0,2}"`)
)

// keepKeys remembers the private keys that are in the state directory now.
func (r *logRun) keepKeys() {
	r.t.Helper()
	out, err := r.Lab.InNode(r.ctx, "sh", "-c", "cat $(find /var/lib/tailscale-nri -name '*.json' -o -name 'tailscaled.state' -o -name '*.state')")
	r.must(err)
	found := 0
	// The state has its values in base64, and keys in them as text.
	texts := []string{out}
	for _, quoted := range keyBytes.FindAllString(out, -1) {
		if plain, err := base64.StdEncoding.DecodeString(strings.Trim(quoted, `"`)); err == nil {
			texts = append(texts, string(plain))
		}
	}
	for _, text := range texts {
		for _, m := range keyText.FindAllStringSubmatch(text, -1) {
			raw, err := hex.DecodeString(m[1])
			r.must(err)
			if bytes.Count(raw, []byte{0}) == len(raw) {
				continue // none
			}
			r.secrets[m[1]], r.secrets[base64.StdEncoding.EncodeToString(raw)] = true, true
			found++
		}
	}
	if found == 0 {
		r.t.Errorf("no key in the state directory, which has\n%.2000s", out)
	}
}

// assertNoSecret looks for every secret that there was, at any level.
func (r *logRun) assertNoSecret() {
	r.t.Helper()
	minted, err := r.plane.Secrets(r.ctx)
	r.must(err)
	r.secrets[r.plane.OAuthClientSecret] = true
	for _, secret := range minted {
		r.secrets[secret[strings.LastIndex(secret, "-")+1:]] = true // its ID is not secret
	}
	text := r.text()
	for secret := range r.secrets {
		if secret == "" || strings.Contains(text, secret) {
			r.t.Errorf("the log has the secret %q", secret)
		}
	}
	r.t.Logf("%d secrets are in none of %d bytes; redacted: %d", len(r.secrets), len(text), strings.Count(text, "[redacted]"))
	if len(minted) < 5 || len(r.secrets) < len(minted)+10 {
		r.t.Errorf("%d minted, %d in all: that is not all that there are", len(minted), len(r.secrets))
	}
}

// SPDX-License-Identifier: BSD-3-Clause

package status

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"sigs.k8s.io/yaml"
)

// The formats of Options.
const (
	Table = "table"
	Wide  = "wide"
	JSON  = "json"
	YAML  = "yaml"
)

// Formats are the formats of Options.
var Formats = []string{Table, Wide, JSON, YAML}

// Options are how to print.
type Options struct {
	Format string    // one of Formats, "" is Table
	Now    time.Time // ages are counted to it; zero is the present
	// Hosts prints even one report with its host, as several are: for commands that ask a
	// cluster.
	Hosts bool
}

// Print writes the reports of all hosts that were asked. A table has a column for
// the host if there are several. As JSON or YAML, one report is a Report, and
// several are the list hosts.
func Print(w io.Writer, reports []Report, o Options) error {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	switch o.Format {
	case Table, Wide, "":
		return printTables(w, reports, o)
	case JSON, YAML:
		return printValue(w, reports, o)
	}
	return CheckFormat(o.Format)
}

// CheckFormat returns an error if Print does not know the format.
func CheckFormat(format string) error {
	if slices.Contains(Formats, format) {
		return nil
	}
	return fmt.Errorf("-o is %q: write one of %s", format, strings.Join(Formats, ", "))
}

func printValue(w io.Writer, reports []Report, o Options) error {
	var v any = struct {
		APIVersion string   `json:"apiVersion"`
		Hosts      []Report `json:"hosts"`
	}{APIVersion, slices.Concat([]Report{}, reports)} // "[]" and not "null"
	if len(reports) == 1 && !o.Hosts {
		v = reports[0]
	}
	text, err := json.MarshalIndent(v, "", "  ")
	text = escape(text)
	if err == nil && o.Format == YAML {
		text, err = yaml.JSONToYAML(text)
	}
	if err != nil {
		return fmt.Errorf("printing the status: %w", err)
	}
	_, err = w.Write(append(bytes.TrimRight(text, "\n"), '\n'))
	return err
}

// column is one of a table's.
type column struct {
	head  string
	wide  bool // only in the wide format
	value func(n *Node, o Options) string
}

var columns = []column{
	{"POD", false, func(n *Node, _ Options) string { return n.name() }},
	{"STATE", false, func(n *Node, _ Options) string { return n.State }},
	{"NAME", false, func(n *Node, _ Options) string { return nameInTailnet(n) }},
	{"ADDRESSES", false, func(n *Node, _ Options) string { return join(n.Addresses) }},
	{"SINCE", false, func(n *Node, o Options) string { return age(n.Since, o.Now) }},
	{"HANDSHAKE", false, func(n *Node, o Options) string { return age(n.LastHandshake, o.Now) }},
	{"PATH", false, func(n *Node, _ Options) string { return path(n) }},
	{"IN", false, func(n *Node, _ Options) string { return size(n, n.BytesIn) }},
	{"OUT", false, func(n *Node, _ Options) string { return size(n, n.BytesOut) }},
	{"TAGS", true, func(n *Node, _ Options) string { return strings.Join(n.Tags, ",") }},
	{"KEY EXPIRY", true, func(n *Node, _ Options) string { return date(n) }},
	{"NODE ID", true, func(n *Node, _ Options) string { return n.NodeID }},
	{"PEERS", true, func(n *Node, _ Options) string { return count(n, n.Peers) }},
	{"SESSIONS", true, func(n *Node, _ Options) string { return count(n, n.Sessions) }},
	{"CONTROL", true, func(n *Node, _ Options) string { return control(n) }},
	{"READY IN", true, func(n *Node, _ Options) string { return readyIn(n) }},
	{"FEATURES", true, func(n *Node, _ Options) string { return features(n) }},
	{"LOGIN SERVER", true, func(n *Node, _ Options) string { return tailnet(n) }},
	{"REASON", false, func(n *Node, _ Options) string { return n.Reason }},
}

// printTables writes the nodes, and below them what else there is to know of the hosts.
func printTables(w io.Writer, reports []Report, o Options) error {
	var text bytes.Buffer
	tw := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	shown := slices.DeleteFunc(slices.Clone(columns), func(c column) bool { return c.wide && o.Format != Wide })
	several, found := len(reports) > 1 || o.Hosts, false
	writeRow(tw, several, "HOST", shown, func(c column) string { return c.head })
	for _, r := range reports {
		nodes := slices.Clone(r.Nodes)
		sortNodes(nodes)
		for _, n := range nodes {
			writeRow(tw, several, r.Host, shown, func(c column) string { return c.value(&n, o) })
			found = true
		}
	}
	tw.Flush() // to a buffer
	if !found {
		text.WriteString("\nno pod here that has a tailnet node, or asks for one\n")
	}
	if o.Format == Wide {
		writePeers(&text, reports, several, o)
	}
	writeRest(&text, reports, several)
	_, err := w.Write(text.Bytes())
	return err
}

func writeRow(w io.Writer, several bool, host string, columns []column, value func(column) string) {
	var cells []string
	if several {
		cells = append(cells, cell(host))
	}
	for _, c := range columns {
		cells = append(cells, cell(value(c)))
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

// writePeers writes a table of the peers with which nodes have a session.
func writePeers(w io.Writer, reports []Report, several bool, o Options) {
	var rows [][]string
	for _, r := range reports {
		for _, n := range r.Nodes {
			for _, p := range n.SessionPeers {
				row := []string{n.name(), p.Name, pathOf(p.Path, p.DERP), p.Endpoint,
					age(p.LastHandshake, o.Now), bytesText(p.BytesIn), bytesText(p.BytesOut)}
				if several {
					row = slices.Insert(row, 0, r.Host)
				}
				rows = append(rows, row)
			}
		}
	}
	if len(rows) == 0 {
		return
	}
	head := []string{"POD", "PEER", "PATH", "ENDPOINT", "HANDSHAKE", "IN", "OUT"}
	if several {
		head = slices.Insert(head, 0, "HOST")
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range slices.Insert(rows, 0, head) {
		for i := range row {
			row[i] = cell(row[i])
		}
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	tw.Flush()
}

func writeRest(w io.Writer, reports []Report, several bool) {
	var lines []string
	for _, r := range reports {
		prefix := ""
		if several {
			prefix = r.Host + ": "
		}
		for _, line := range slices.Concat([]string{r.Error, r.Message}, r.Warnings) {
			if line != "" {
				lines = append(lines, prefix+line)
			}
		}
	}
	if len(lines) > 0 {
		fmt.Fprintln(w)
	}
	for _, line := range lines {
		fmt.Fprintln(w, Clean(line))
	}
}

// cell is a value that is never empty and never breaks the table.
func cell(s string) string { return cmp.Or(Clean(s), "-") }

// Clean replaces characters that do not print, which may come from a peer or an API: they
// could move the terminal's cursor.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

// escape writes as JSON's escapes the characters that do not print and that encoding/json
// leaves as they are, from U+007F on. Some terminals take U+009B for the beginning of a
// command, and YAML does not allow all of them. Those beyond U+FFFF, of which YAML has
// other escapes, do no harm.
func escape(text []byte) []byte {
	var out []byte
	for _, r := range string(text) {
		if r < 0x7f || r > 0xffff || unicode.IsPrint(r) {
			out = utf8.AppendRune(out, r)
		} else {
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
}

// nameInTailnet is the name that the node was given, and the requested one if that
// differs.
func nameInTailnet(n *Node) string {
	given, _, _ := strings.Cut(n.DNSName, ".")
	switch {
	case given == "":
		return n.Hostname
	case n.Hostname == "" || n.Hostname == given:
		return given
	}
	return given + " (asked: " + n.Hostname + ")"
}

func path(n *Node) string {
	switch {
	case n.Path != "":
		return pathOf(n.Path, n.PathDERP)
	case n.State == Running:
		return "idle"
	}
	return ""
}

// pathOf is "derp fra", for a DERP region.
func pathOf(path, region string) string {
	return strings.TrimSpace(path + " " + region)
}

// age is the time since t, in the largest unit that leaves it exact enough; "" of
// no time.
func age(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	switch d := max(now.Sub(t), 0); {
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "s"
	case d < 3*time.Hour:
		return strconv.Itoa(int(d.Minutes())) + "m"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + "h"
	default:
		return strconv.Itoa(int(d.Hours()/24)) + "d"
	}
}

// size is a number of bytes, "" of a node that has no backend.
func size(n *Node, bytes uint64) string {
	if n.State != Running && bytes == 0 {
		return ""
	}
	return bytesText(bytes)
}

func bytesText(bytes uint64) string {
	const units = "KMGTPE"
	if bytes < 1024 {
		return strconv.FormatUint(bytes, 10)
	}
	v, unit := float64(bytes)/1024, 0
	for v >= 1023.95 && unit < len(units)-1 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f%ciB", v, units[unit])
}

func count(n *Node, of int) string {
	if n.State != Running && of == 0 {
		return ""
	}
	return strconv.Itoa(of)
}

func control(n *Node) string {
	switch {
	case n.ControlConnected:
		return "connected"
	case n.State == Running:
		return "away"
	}
	return ""
}

func date(n *Node) string {
	if n.KeyExpiry.IsZero() {
		return ""
	}
	return n.KeyExpiry.UTC().Format(time.DateOnly)
}

func readyIn(n *Node) string {
	if n.ReadyIn == 0 {
		return ""
	}
	return time.Duration(n.ReadyIn * float64(time.Second)).Round(time.Millisecond).String()
}

func features(n *Node) string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(n.Features)) {
		if v := n.Features[key]; v != "true" {
			key += "=" + v
		}
		list = append(list, key)
	}
	return strings.Join(list, " ")
}

func tailnet(n *Node) string {
	if n.Profile == "" {
		return n.LoginServer
	}
	return strings.TrimSpace(n.LoginServer + " (profile " + n.Profile + ")")
}

func join[T fmt.Stringer](list []T) string {
	text := make([]string, len(list))
	for i, v := range list {
		text[i] = v.String()
	}
	return strings.Join(text, ",")
}

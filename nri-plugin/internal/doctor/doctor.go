// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"tailscale-nri/nri-plugin/internal/statussocket"
)

// The results of a check.
const (
	ResultOK      = "ok"
	ResultWarn    = "warn"    // it works, worse than it could, or not for all
	ResultFail    = "fail"    // pods get no node, or no traffic, because of it
	ResultUnknown = "unknown" // it cannot be seen from here
)

// Finding is one result of a check.
type Finding struct {
	Check  string `json:"check"`
	Result string `json:"result"`
	Seen   string `json:"seen"`
	Remedy string `json:"remedy,omitempty"` // of warn and fail: one of those in remedies.go
}

func fine(seen string) Finding    { return Finding{Result: ResultOK, Seen: seen} }
func unknown(seen string) Finding { return Finding{Result: ResultUnknown, Seen: seen} }

func warn(seen, remedy string) Finding {
	return Finding{Result: ResultWarn, Seen: seen, Remedy: remedy}
}

func fail(seen, remedy string) Finding {
	return Finding{Result: ResultFail, Seen: seen, Remedy: remedy}
}

// check looks at one thing of a host. It ends with ctx, has one finding at
// least, and changes nothing.
type check struct {
	name string
	run  func(ctx context.Context, h *Host) []Finding
}

// checks are all checks, in the order of the table.
func checks() []check {
	return []check{
		{"configuration", checkConfiguration},
		{"plugin", checkPlugin},
		{"NRI", checkNRI},
		{"kernel", checkKernel},
		{"kernel features", checkFeatures},
		{"IPv6", checkIPv6},
		{"capabilities", checkCapabilities},
		{"credentials", checkMinting},
		{"control plane", checkControl},
		{"clock", checkClock},
		{"proxy", checkProxy},
		{"DERP", checkPaths},
		{"MTU", checkMTU},
		{"address ranges", checkRanges},
		{"host's tailscaled", checkTailscaled},
		{"network managers", checkManagers},
		{"state directory", checkState},
		{"leftovers", checkLeftovers},
		{"devices", checkDevices},
		{"open files", checkFiles},
		{"memory", checkMemory},
	}
}

// CheckNames are the names of all checks, in the order of the table.
func CheckNames() (names []string) {
	for _, c := range checks() {
		names = append(names, c.name)
	}
	return names
}

// ErrFindings says that a check has failed. The table says it all.
var ErrFindings = errors.New("something fails")

// Run runs all checks and prints what they have seen. Its error is ErrFindings
// or a statussocket.CannotAsk.
func Run(ctx context.Context, h *Host, asJSON bool, w io.Writer) error {
	findings := examine(ctx, h, checks())
	if err := ctx.Err(); err != nil {
		return statussocket.CannotAsk{Err: err}
	}
	show := printFindings
	if asJSON {
		show = func(w io.Writer, findings []Finding) error {
			e := json.NewEncoder(w)
			e.SetIndent("", "  ")
			return e.Encode(findings)
		}
	}
	if err := show(w, findings); err != nil {
		return statussocket.CannotAsk{Err: fmt.Errorf("printing the findings: %w", err)}
	}
	if slices.ContainsFunc(findings, func(f Finding) bool { return f.Result == ResultFail }) {
		return ErrFindings
	}
	return nil
}

// endGrace is how long an interrupted doctor waits for checks that have something to
// undo: a key to be deleted (tailnet.TryKey).
const endGrace = 3 * time.Second

// examine runs the checks side by side, each for h.patience at most, and returns
// their findings in their order. One that does not end by then is abandoned.
// Where ctx ends there are none, and those that undo something have done it.
func examine(ctx context.Context, h *Host, list []check) (findings []Finding) {
	each := make([]chan []Finding, len(list))
	for i, c := range list {
		each[i] = make(chan []Finding, 1)
		go func() {
			ctx, cancel := context.WithTimeout(ctx, h.patience)
			defer cancel()
			each[i] <- c.run(ctx, h)
		}()
	}
	// Those that heed the end of their context have a moment to say so.
	over := time.After(h.patience + h.patience/8)
	for i, c := range list {
		var of []Finding
		select {
		case of = <-each[i]:
		case <-over:
			over = closedTime()
			of = endedBy(each[i], h.patience)
		case <-ctx.Done():
			awaitEnd(each[i:])
			return nil
		}
		for _, f := range of {
			f.Check = cmp.Or(f.Check, c.name)
			f.Seen = strings.Join(strings.Fields(f.Seen), " ")
			findings = append(findings, f)
		}
	}
	return findings
}

// awaitEnd waits for checks to end, for endGrace at most.
func awaitEnd(each []chan []Finding) {
	over := time.After(endGrace)
	for _, found := range each {
		select {
		case <-found:
		case <-over:
			return
		}
	}
}

// endedBy returns the findings of a check at the end of its time.
func endedBy(found <-chan []Finding, patience time.Duration) []Finding {
	select {
	case of := <-found:
		return of
	default:
		return []Finding{unknown(fmt.Sprintf("no answer within %v", patience))}
	}
}

// closedTime is a timer that has fired, for any number of readers.
func closedTime() <-chan time.Time {
	c := make(chan time.Time)
	close(c)
	return c
}

// printFindings writes a line for each, and below it the remedy if it has one.
func printFindings(w io.Writer, findings []Finding) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "CHECK\tRESULT\tSEEN, AND REMEDY")
	for _, f := range findings {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", f.Check, f.Result, f.Seen)
		if f.Remedy != "" {
			fmt.Fprintf(tw, "\t\tremedy: %s\n", f.Remedy)
		}
	}
	return tw.Flush()
}

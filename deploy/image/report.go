// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// report is the command's output to the user.
type report struct {
	name, version string
	digest        v1.Hash // of the index of all platforms
	images        []imageReport
}

type imageReport struct {
	platform string
	digest   v1.Hash
	archive  string
	size     int // bytes of the archive
	unpacked int // bytes of the binary
	modules  int // linked in
}

func (r *report) write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%s  %s  %s\n", r.name, r.version, r.digest)
	for _, i := range r.images {
		fmt.Fprintf(t, "%s\t%s\t%.1f MB packed\t%.1f MB unpacked\t%d modules\t%s\n", i.platform, i.digest,
			float64(i.size)/1e6, float64(i.unpacked)/1e6, i.modules, i.archive)
	}
	return t.Flush()
}

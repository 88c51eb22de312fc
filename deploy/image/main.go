// SPDX-License-Identifier: BSD-3-Clause

// Command image packs tailscale-nri as container images: a binary for each platform goes in, out come an OCI image
// layout of all of them and, for each, an archive that containerd, k3d and Docker load. `make image` runs it.
//
//	OUT/oci/                           index of all platforms, and a bill of materials that refers to each image
//	OUT/tailscale-nri-ARCH.tar         one image; an OCI layout and a docker-archive that share their blobs
//	OUT/tailscale-nri-ARCH.spdx.json   its bill of materials (SPDX 2.3)
//
// What an image holds is one file. The same binaries, version, revision and date give the same bytes.
//
// It does not build the binaries, pulls no base image, pushes to no registry, and signs nothing.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// request is what is asked for.
type request struct {
	out      string // directory that is written to
	ref      reference
	version  string
	revision string    // of the source; "" if unknown
	created  time.Time // of everything that has a date
	binaries []string  // paths, one for each platform
}

func run(args []string, stdout io.Writer) error {
	req, err := parse(args)
	if err != nil {
		return err
	}
	report, err := pack(req)
	if err != nil {
		return err
	}
	return report.write(stdout)
}

func parse(args []string) (request, error) {
	var req request
	var ref, epoch string
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.StringVar(&req.out, "out", "", "`directory` to write to")
	flags.StringVar(&ref, "ref", "tailscale-nri:dev", "`name:tag` of the image")
	flags.StringVar(&req.version, "version", "unknown", "version of the program")
	flags.StringVar(&req.revision, "revision", "", "commit that the source is of")
	flags.StringVar(&epoch, "created", "0", "date of all files, `seconds` since 1970 (SOURCE_DATE_EPOCH)")
	if err := flags.Parse(args); err != nil {
		return req, fmt.Errorf("reading the arguments: %w", err)
	}
	req.binaries = flags.Args()
	if req.out == "" || len(req.binaries) == 0 {
		return req, errors.New("give -out DIRECTORY and a binary for each platform")
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 0 {
		return req, fmt.Errorf("-created=%q is not a date; give seconds since 1970, as SOURCE_DATE_EPOCH has them", epoch)
	}
	req.created = time.Unix(seconds, 0).UTC()
	req.ref, err = parseReference(ref)
	return req, err
}

// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// reference names an image. containerd knows images by their full names only, Docker takes and shows short ones.
type reference struct {
	full  string // docker.io/library/tailscale-nri:dev
	short string // tailscale-nri:dev
	tag   string // dev
}

func parseReference(text string) (reference, error) {
	tag, err := name.NewTag(text)
	if err != nil {
		return reference{}, fmt.Errorf("IMAGE=%q is not an image name with a tag, such as tailscale-nri:dev: %w", text, err)
	}
	full := tag.Name()
	// The library's name for Docker Hub is that of its index.
	if rest, ok := strings.CutPrefix(full, name.DefaultRegistry+"/"); ok {
		full = "docker.io/" + rest
	}
	short := strings.TrimPrefix(strings.TrimPrefix(full, "docker.io/"), "library/")
	return reference{full: full, short: short, tag: tag.TagStr()}, nil
}

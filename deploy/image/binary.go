// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// binary is a program as Go has built it.
type binary struct {
	data     []byte
	info     *buildinfo.BuildInfo
	platform v1.Platform
}

// readBinary reads a binary, and refuses one that would not run in an image that holds nothing else.
func readBinary(path string) (*binary, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the binary: %w", err)
	}
	info, err := buildinfo.Read(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("reading the build information of %s, which go build writes: %w", path, err)
	}
	file, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("reading %s, which is to be a program for Linux: %w", path, err)
	}
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return nil, fmt.Errorf("%s wants a dynamic linker, which the image has not; build it with CGO_ENABLED=0", path)
		}
	}
	return &binary{data: data, info: info, platform: v1.Platform{OS: setting(info, "GOOS"), Architecture: setting(info, "GOARCH")}}, nil
}

// setting returns a setting that the binary was built with, "" if it has none of that name.
func setting(info *buildinfo.BuildInfo, key string) string {
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

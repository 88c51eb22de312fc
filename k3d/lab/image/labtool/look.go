// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
)

// lookup asks the resolver that the pod's resolv.conf names, search list and all.
func lookup(ctx context.Context, opt options, name string) error {
	ctx, cancel := context.WithTimeout(ctx, opt.timeout)
	defer cancel()
	addrs, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, name)
	if err != nil {
		return err
	}
	slices.Sort(addrs)
	for _, addr := range addrs {
		fmt.Fprintln(opt.out, addr)
	}
	return nil
}

func cat(_ context.Context, opt options, file string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(opt.out, in)
	return err
}

// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab/internal/wait"
)

// lock keeps two programs from building the same lab. It is an abstract unix socket (unix(7)): it leaves no file, and
// ends with the program that holds it however that ends.
//
// A program that was killed holds it for as long as the kernel takes to end it, so there are a few tries.
func (c Config) lock() (net.Listener, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	name := "@" + c.Name + ".lab"
	var held net.Listener
	err := wait.Until(ctx, pollInterval, func(context.Context) (err error) {
		held, err = net.Listen("unix", name)
		return err
	})
	if err == nil {
		return held, nil
	}
	holder, dialErr := holderOf(name)
	if dialErr != nil {
		return nil, fmt.Errorf("locking lab %q: %w", c.Name, err)
	}
	return nil, fmt.Errorf("lab %q is in use by process %s; wait for its end, or give another name (LAB_NAME)", c.Name,
		describe([]int{holder}))
}

// holderOf asks the kernel who listens.
func holderOf(name string) (pid int, err error) {
	conn, err := net.Dial("unix", name)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	ctlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if ctlErr != nil {
		return 0, ctlErr
	}
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

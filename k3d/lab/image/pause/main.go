// SPDX-License-Identifier: BSD-3-Clause

// Command pause holds a pod's namespaces: it waits for a signal and does nothing else, not even reap, since the
// lab's pods do not share a PID namespace.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	<-end
}

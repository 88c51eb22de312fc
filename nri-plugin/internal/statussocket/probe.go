// SPDX-License-Identifier: BSD-3-Clause

package statussocket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// answerProbe answers with a line, which is what an event of the kubelet shows.
func answerProbe(w http.ResponseWriter, ok bool, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprint(w, text)
}

// Probe asks the process on this host whether it is ready, or live, and prints
// its answer. One that is not is an error with that answer.
func Probe(ctx context.Context, socket, what string, w io.Writer) error {
	code, body, err := Fetch(ctx, socket, what)
	switch {
	case err != nil:
		return err
	case code != http.StatusOK:
		return errors.New(string(body))
	}
	fmt.Fprintln(w, string(body))
	return nil
}

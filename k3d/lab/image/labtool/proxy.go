// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
)

// proxy is an HTTP proxy: CONNECT, and requests of plain HTTP with an upgrade if they ask for one.
func proxy(ctx context.Context, opt options, addr string) error {
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(os.Getenv("PROXY_AUTH")))
	forward := &httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}}
	server := &http.Server{Addr: addr, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Proxy-Authorization") != want:
			fmt.Fprintln(opt.out, "refused", r.Method, r.Host)
			w.Header().Set("Proxy-Authenticate", "Basic")
			http.Error(w, "who are you?", http.StatusProxyAuthRequired)
		case r.Method == http.MethodConnect:
			fmt.Fprintln(opt.out, "connect", r.Host)
			tunnel(w, r.Host)
		default:
			fmt.Fprintln(opt.out, "forward", r.Host, r.URL.Path)
			forward.ServeHTTP(w, r)
		}
	})}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	fmt.Fprintln(opt.out, "proxy on", addr)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// tunnel joins the connection of a request with one to addr.
func tunnel(w http.ResponseWriter, addr string) {
	there, err := net.Dial("tcp", addr)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	fmt.Fprint(here, "HTTP/1.1 200 OK\r\n\r\n")
	done := make(chan struct{}, 2)
	pipe := func(to io.Writer, from io.Reader) {
		_, _ = io.Copy(to, from)
		done <- struct{}{}
	}
	go pipe(there, buffered)
	go pipe(here, there)
	<-done
}

// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
)

// answer is what serve says to each request.
type answer struct {
	Host   string              `json:"host"`
	Local  string              `json:"local"`  // address that was asked
	Remote string              `json:"remote"` // address that asks
	Addrs  map[string][]string `json:"addrs"`  // by interface
}

// serve answers every path alike, but for /bytes, which is a body of 1 MiB.
func serve(ctx context.Context, opt options, addr string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _ := os.Hostname()
		local := r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
		json.NewEncoder(w).Encode(answer{host, local, r.RemoteAddr, interfaceAddrs()})
	})
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1<<20)) })
	server := &http.Server{Addr: addr, Handler: mux}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	fmt.Fprintln(opt.out, "serving HTTP on", addr)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func interfaceAddrs() map[string][]string {
	byName := map[string][]string{}
	links, _ := net.Interfaces()
	for _, link := range links {
		addrs, _ := link.Addrs()
		for _, a := range addrs {
			byName[link.Name] = append(byName[link.Name], a.String())
		}
	}
	return byName
}

func get(ctx context.Context, opt options, url string) error {
	ctx, cancel := context.WithTimeout(ctx, opt.timeout)
	defer cancel()
	if opt.retry == 0 {
		return getOnce(ctx, opt, url)
	}
	for {
		once, stop := context.WithTimeout(ctx, opt.retry)
		err := getOnce(once, opt, url)
		if err != nil {
			<-once.Done() // so that a refusal is not followed at once
		}
		stop()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

func getOnce(ctx context.Context, opt options, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := new(http.Client).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, res.Status)
	}
	_, err = io.Copy(opt.out, res.Body)
	return err
}

// echo gives back what comes, over TCP and UDP.
func echo(ctx context.Context, opt options, addr string) error {
	packets, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	defer packets.Close()
	go echoPackets(packets)
	return accept(ctx, opt, "echo", addr, func(conn net.Conn) { _, _ = io.Copy(conn, conn) })
}

func echoPackets(packets net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := packets.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = packets.WriteTo(buf[:n], from) // a loss, as any other
		}
	}
}

// accept hands each connection to serve on a goroutine of its own and closes it afterwards.
func accept(ctx context.Context, opt options, name, addr string, serve func(net.Conn)) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	fmt.Fprintln(opt.out, "serving", name, "on", addr)
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			serve(conn)
		}()
	}
}

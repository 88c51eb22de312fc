// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"tailscale-nri/k3d/lab"
)

// table writes rows of tab-separated columns.
func table(head string, rows []string) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, head)
	for _, row := range rows {
		fmt.Fprintln(w, row)
	}
	return w.Flush()
}

func pods(ctx context.Context, running *lab.Lab, _ []string) error {
	list, err := running.CRI().ListPods(ctx)
	if err != nil {
		return err
	}
	var rows []string
	for _, p := range list {
		p, err := running.CRI().PodStatus(ctx, p.ID)
		if err != nil {
			return err
		}
		rows = append(rows, fmt.Sprintf("%.12s\t%s/%s\t%t\t%s\t%s", p.ID, p.Spec.Namespace, p.Spec.Name, p.Ready,
			strings.Join(p.IPs, ","), p.NetNS))
	}
	return table("ID\tPOD\tREADY\tADDRESSES\tNETNS", rows)
}

func runPod(ctx context.Context, running *lab.Lab, args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	spec := lab.PodSpec{Name: args[0], Annotations: map[string]string{}}
	for _, a := range args[1:] {
		key, value, ok := strings.Cut(a, "=")
		if !ok {
			return fmt.Errorf("annotation %q is not KEY=VALUE", a)
		}
		spec.Annotations[key] = value
	}
	id, err := running.CRI().RunPod(ctx, spec)
	if err != nil {
		return err
	}
	if _, err := running.CRI().RunContainer(ctx, id, lab.ContainerSpec{Name: "tool"}); err != nil {
		return err
	}
	fmt.Println(id)
	return nil
}

func stopPod(ctx context.Context, running *lab.Lab, args []string) error {
	if len(args) != 1 {
		return errors.New(usage)
	}
	if err := running.CRI().StopPod(ctx, args[0]); err != nil {
		return err
	}
	return running.CRI().RemovePod(ctx, args[0])
}

func peer(ctx context.Context, running *lab.Lab, args []string) error {
	cfg := lab.PeerConfig{Name: strings.Join(args, " ")}
	plane, err := running.Control(ctx)
	if err != nil {
		return err
	}
	cfg.LoginServer = plane.ControlURL
	if cfg.AuthKey, err = plane.NewKey(ctx, "tag:peer"); err != nil {
		return err
	}
	started, err := running.StartPeer(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Println(started.IP4, started.IP6)
	return nil
}

func devices(ctx context.Context, running *lab.Lab, _ []string) error {
	plane, err := running.Control(ctx)
	if err != nil {
		return err
	}
	list, err := plane.Devices(ctx)
	if err != nil {
		return err
	}
	var rows []string
	for _, d := range list {
		rows = append(rows, fmt.Sprintf("%s\t%s\t%v\t%v\t%t", d.ID, d.Name, d.Addresses, d.Tags, d.Online))
	}
	return table("ID\tNAME\tADDRESSES\tTAGS\tONLINE", rows)
}

// execIn connects the program to this one's terminal.
func execIn(ctx context.Context, running *lab.Lab, args []string) error {
	if len(args) < 2 {
		return errors.New(usage)
	}
	cmd, err := running.CommandIn(ctx, args[0], args[1], args[2:]...)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

package instance

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/volume/nfs"
)

// servedVolumes are the volumes of a sandbox, served to its guest.
type servedVolumes struct {
	server  *nfs.Server
	release []func()
}

// serveVolumes serves the owner's volumes in the slot. The guest of an earlier agent
// waits for it and goes on.
func (i *Instance) serveVolumes(ctx context.Context) (err error) {
	if len(i.owner.Volumes) == 0 {
		return nil
	}
	if i.host.Volumes == nil {
		return wrenn.Errorf(wrenn.FailedPrecondition, "this host stores no volumes")
	}
	served := &servedVolumes{}
	defer func() {
		if err != nil {
			served.close()
		}
	}()
	var exports []nfs.Export
	for _, mount := range i.owner.Volumes {
		root, release, err := i.host.Volumes.Mount(mount.Volume)
		if err != nil {
			return err
		}
		served.release = append(served.release, release)
		exports = append(exports, nfs.Export{Name: string(mount.Volume), Root: root})
	}
	log := i.host.Log.With(slog.String("sandbox", string(i.owner.ID)))
	if served.server, err = nfs.New(exports, log); err != nil {
		return err
	}
	listener, err := i.Slot.ListenVolumes(ctx)
	if err != nil {
		return err
	}
	go func() {
		if err := served.server.Serve(listener); !errors.Is(err, net.ErrClosed) {
			log.Error("server of volumes stopped", slog.Any("err", err))
		}
	}()
	i.volumes = served
	return nil
}

// close stops serving and gives the volumes back. Nil has nothing to do; twice is allowed.
func (v *servedVolumes) close() {
	if v == nil {
		return
	}
	if v.server != nil {
		v.server.Close()
	}
	for _, release := range v.release {
		release()
	}
}

// mounts returns what the guest is to mount.
func (i *Instance) mounts() (mounts []envdclient.VolumeMount) {
	for _, m := range i.owner.Volumes {
		mounts = append(mounts, envdclient.VolumeMount{Target: network.GatewayAddress + ":/" + string(m.Volume), Path: m.Path})
	}
	return mounts
}

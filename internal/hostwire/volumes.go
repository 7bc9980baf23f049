package hostwire

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn.dev"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

var fileTypes = map[wrenn.FileType]pb.VolumeEntry_Type{
	wrenn.RegularFile: pb.VolumeEntry_TYPE_FILE, wrenn.Directory: pb.VolumeEntry_TYPE_DIRECTORY, wrenn.Symlink: pb.VolumeEntry_TYPE_LINK,
}

// VolumeEntry returns the message of an entry.
func VolumeEntry(e wrenn.VolumeEntry) *pb.VolumeEntry {
	return &pb.VolumeEntry{
		Path: e.Path, Type: fileTypes[e.Type], Size: e.Size, Mode: e.Mode, Uid: e.UID, Gid: e.GID, Target: e.Target,
		AccessedAt: timestamppb.New(e.AccessedAt), ModifiedAt: timestamppb.New(e.ModifiedAt), ChangedAt: timestamppb.New(e.ChangedAt),
	}
}

// ParseVolumeEntry is the reverse of VolumeEntry.
func ParseVolumeEntry(m *pb.VolumeEntry) wrenn.VolumeEntry {
	e := wrenn.VolumeEntry{
		Path: m.GetPath(), Type: wrenn.OtherFile, Size: m.GetSize(), Mode: m.GetMode(), UID: m.GetUid(), GID: m.GetGid(), Target: m.GetTarget(),
		AccessedAt: m.GetAccessedAt().AsTime(), ModifiedAt: m.GetModifiedAt().AsTime(), ChangedAt: m.GetChangedAt().AsTime(),
	}
	for kind, number := range fileTypes {
		if number == m.GetType() {
			e.Type = kind
		}
	}
	return e
}

// VolumeAttributes returns the message of attributes.
func VolumeAttributes(a wrenn.VolumeAttributes) *pb.VolumeAttributes {
	return &pb.VolumeAttributes{Mode: a.Mode, Uid: a.UID, Gid: a.GID}
}

// ParseVolumeAttributes is the reverse of VolumeAttributes.
func ParseVolumeAttributes(m *pb.VolumeAttributes) wrenn.VolumeAttributes {
	if m == nil {
		return wrenn.VolumeAttributes{}
	}
	return wrenn.VolumeAttributes{Mode: m.Mode, UID: m.Uid, GID: m.Gid}
}

// VolumeWrite returns the first message of a file that is written.
func VolumeWrite(id wrenn.VolumeID, path string, w wrenn.VolumeWrite) *pb.WriteVolumeFileMeta {
	return &pb.WriteVolumeFileMeta{
		VolumeId: string(id), Path: path, Attributes: VolumeAttributes(w.VolumeAttributes), Parents: w.Parents, NoReplace: w.NoReplace,
	}
}

// ParseVolumeWrite is the reverse of VolumeWrite, but for the id and the path.
func ParseVolumeWrite(m *pb.WriteVolumeFileMeta) wrenn.VolumeWrite {
	return wrenn.VolumeWrite{VolumeAttributes: ParseVolumeAttributes(m.GetAttributes()), Parents: m.GetParents(), NoReplace: m.GetNoReplace()}
}

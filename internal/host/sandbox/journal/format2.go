package journal

import "encoding/json"

// Format 2 had other names for what format 3 has.
var (
	format2Names         = map[string]string{"generation": "starts", "body": "instance", "spare": "other", "shape": "size"}
	format2InstanceNames = map[string]string{"generation": "start", "origin": "source"}
	format2Templates     = map[string]string{".stock": PoolTemplate}
)

// upgrade returns a file of an older format in the current one, and any other
// as it is. It does not look for mistakes: they remain for the caller to find.
func upgrade(data []byte) ([]byte, error) {
	var file map[string]json.RawMessage
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, err
	}
	if string(file["format"]) != "2" {
		return data, nil
	}
	file["format"] = json.RawMessage("3")
	rename(file, format2Names)
	for _, name := range []string{"instance", "other"} {
		if err := upgradeInstance(file, name); err != nil {
			return nil, err
		}
	}
	var template string
	if json.Unmarshal(file["template"], &template) == nil && format2Templates[template] != "" {
		file["template"], _ = json.Marshal(format2Templates[template]) // text can always be written
	}
	return json.Marshal(file)
}

func upgradeInstance(file map[string]json.RawMessage, name string) error {
	if file[name] == nil {
		return nil
	}
	var instance map[string]json.RawMessage
	if err := json.Unmarshal(file[name], &instance); err != nil {
		return err
	}
	rename(instance, format2InstanceNames)
	var err error
	file[name], err = json.Marshal(instance)
	return err
}

func rename(fields map[string]json.RawMessage, names map[string]string) {
	for from, to := range names {
		if value, exists := fields[from]; exists {
			delete(fields, from)
			fields[to] = value
		}
	}
}

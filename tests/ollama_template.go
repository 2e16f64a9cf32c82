package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role    string
	Content string
}

type job struct {
	Template      string
	Conversations [][]message
}

// Joins system texts, and turns in a row of one role, as Ollama does.
func collate(messages []message) (string, []*message) {
	var systems []string
	var joined []*message
	for i := range messages {
		m := &messages[i]
		if m.Role == "system" {
			systems = append(systems, m.Content)
		}
		if n := len(joined); n > 0 && joined[n-1].Role == m.Role {
			joined[n-1].Content += "\n\n" + m.Content
		} else {
			joined = append(joined, m)
		}
	}
	return strings.Join(systems, "\n\n"), joined
}

func render(j job) ([]string, error) {
	t, err := template.New("").Option("missingkey=zero").Parse(j.Template)
	if err != nil {
		return nil, err
	}
	texts := []string{}
	for _, conversation := range j.Conversations {
		system, messages := collate(conversation)
		var text strings.Builder
		values := map[string]any{"System": system, "Messages": messages, "Response": ""}
		if err := t.Execute(&text, values); err != nil {
			return nil, err
		}
		texts = append(texts, text.String())
	}
	return texts, nil
}

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	results := [][]string{}
	for _, j := range jobs {
		texts, err := render(j)
		if err != nil {
			texts = []string{"error: " + err.Error()}
		}
		results = append(results, texts)
	}
	json.NewEncoder(os.Stdout).Encode(results)
}

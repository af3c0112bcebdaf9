"""What `claims` measures: claims by how many tasks are ready, and how soon a dead agent's task is another one's."""

"""What half precision does to every tensor of a graph, and which modules should stay float32."""

"""Where a run happens: in this process, on Ray, on a SuperLink."""

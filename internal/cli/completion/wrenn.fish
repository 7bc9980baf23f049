# Completion of wrenn for fish, by: wrenn completion fish | source

function __wrenn_complete
	set -l words (commandline -opc) (commandline -ct)
	set -l found ('WRENN' __complete -- $words[2..-1] 2>/dev/null)
	if test (count $found) -gt 0
		printf '%s\n' $found
	else
		__fish_complete_path (commandline -ct)
	end
end

complete -c wrenn -f -a '(__wrenn_complete)'

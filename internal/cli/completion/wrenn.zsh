#compdef wrenn
# Completion of wrenn for zsh, by: source <(wrenn completion zsh), after compinit

_wrenn() {
	local -a found values shown
	local line
	found=("${(@f)$('WRENN' __complete -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
	for line in "${found[@]}"; do
		[[ -n $line ]] || continue
		values+=("${line%%$'\t'*}")
		shown+=("${line/$'\t'/  -- }")
	done
	if (( ! ${#values} )); then
		_files
	elif [[ ${#values} == 1 && ${values[1]} == *: ]]; then
		compadd -S '' -- "${values[@]}"
	else
		compadd -l -d shown -- "${values[@]}"
	fi
}

if [[ ${funcstack[1]} == _wrenn ]]; then
	_wrenn "$@"
else
	compdef _wrenn wrenn
fi

# Completion of wrenn for bash, by: source <(wrenn completion bash)

_wrenn() {
	local line=${COMP_LINE:0:COMP_POINT} cur words found word
	read -ra words <<<"$line" # as typed: bash cuts words at = and :
	[[ $line == *[[:space:]] ]] && words+=('')
	cur=${words[-1]}
	mapfile -t found < <('WRENN' __complete -- "${words[@]:1}" 2>/dev/null)
	COMPREPLY=()
	for word in "${found[@]}"; do
		word=${word%%$'\t'*}
		# What is cut off is not replaced.
		[[ $cur == *=* && $COMP_WORDBREAKS == *=* ]] && word=${word#"${cur%%=*}="}
		[[ $cur == *:* && $COMP_WORDBREAKS == *:* ]] && word=${word#"${cur%:*}:"}
		COMPREPLY+=("$word")
	done
	[[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *: ]] && compopt -o nospace
}

complete -o bashdefault -o default -F _wrenn wrenn

/** Directories that this process has made: they are removed again if its command fails before it has started. */
const made: string[] = []

/** Notes a directory that was made just now. `path` must lead through nothing that another user can change. */
export function noteMade(path: string): void {
  made.push(path)
}

/** The noted directories, each once. */
export function takeMade(): string[] {
  return made.splice(0)
}

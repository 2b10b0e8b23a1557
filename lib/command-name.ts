/** What the user calls our commands: by other names where they are installed than in a checkout. */

/** The names that package.json installs. */
const installed = {
  'dump-to-stdout': 'criu-dump-to-stdout',
  'restore-from-socket': 'criu-restore-from-socket',
  proxy: 'criu-image-proxy',
  cache: 'criu-image-cache',
  flatten: 'criu-flatten',
  'pre-copy': 'criu-pre-copy',
} as const

export type CommandName = keyof typeof installed

/** What the user types for `command`, for usage texts, hints and errors. */
export function commandName(command: CommandName): string {
  return isInstalled(process.argv[1] ?? '') ? installed[command] : command
}

/** `program`: as Node has it, where a link of npm is not followed. Other installers start the program itself. */
export function isInstalled(program: string): boolean {
  const name = program.slice(program.lastIndexOf('/') + 1)
  return Object.values<string>(installed).includes(name) || program.includes('/node_modules/criu-ferry/')
}

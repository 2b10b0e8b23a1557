/** The main job, shown: a process that checks its own memory crosses proxy and cache; without a CRIU, recorded images. */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'
import { promisify } from 'node:util'
import { decodeDumpStats } from '../lib/format/stats.ts'
import { findCriu } from '../lib/role/criu.ts'

const root = dirname(import.meta.dirname)
const folder = mkdtempSync(join(tmpdir(), 'ferry-demo-'))
const [log, MIB] = [join(folder, 'count.log'), 128]
const say = (text: string): void => void process.stdout.write(`${text}\n`)
const shell = async (command: string): Promise<void> => {
  say(`$ ${command.replaceAll(folder, '/run').replace(/^\S*criu /, 'criu ')}`)
  const env = { ...process.env, PATH: `${join(root, 'scripts', 'bin')}:${process.env.PATH}` }
  const { stdout, stderr } = await promisify(execFile)('sh', ['-c', command], { cwd: folder, env })
  process.stdout.write(stdout + stderr)
}
const lines = (): string[] => readFileSync(log, 'utf8').trim().split('\n')

/** Starts a command of ours in the background and waits until it says `ready`. */
async function background(name: string, args: string[], ready: RegExp) {
  say(`$ ${name} ${args.join(' ').replaceAll(folder, '/run')} &`)
  const child = spawn(join(root, 'scripts', 'bin', name), args, { stdio: ['ignore', 'inherit', 'pipe'] })
  for await (const line of createInterface(child.stderr)) {
    const match = ready.exec(line)
    if (match === null) continue
    const said: Buffer[] = []
    child.stderr.on('data', (text: Buffer) => process.stdout.write(text) && said.push(text)).resume()
    return { match: match[1] ?? '', said: () => said.join(''), stop: () => void child.kill() }
  }
  throw new Error(`${name} did not start`)
}

async function migrate(criu: string): Promise<void> {
  const proc = spawn('perl', [join(root, 'fixtures', 'pattern.pl'), `${MIB}`, log], { detached: true, stdio: 'ignore' })
  const gone = once(proc, 'exit')
  await setTimeout(2500)
  const cache = await background('cache', ['--port', '0', '-D', join(folder, 'target')], /listening on .*:(\d+)$/)
  const proxy = await background('proxy', ['--port', cache.match, '-D', join(folder, 'source')], /listening on (.*)/)
  try {
    say(`process ${proc.pid}, ${MIB} MiB, counts: ${lines().at(-1)}`)
    await shell(`${criu} dump --stream -t ${proc.pid} -D source 2>dump.log`)
    await gone
    const last = lines().at(-1)
    say(`process ${proc.pid} is gone; the last that it counted: ${last}`)
    await shell(`${criu} restore --stream -d -D target 2>restore.log`)
    process.kill(proc.pid as number, 'SIGUSR1')
    await setTimeout(1500)
    const after = lines().slice(lines().lastIndexOf(last ?? '') + 1)
    const checked = after.find((line) => line.startsWith('all '))
    const { frozenTime } = decodeDumpStats(readFileSync(join(folder, 'source', 'stats-dump')))
    say(`process ${proc.pid} goes on: ${after.at(0)} ... ${after.at(-1)}; its memory: ${checked}`)
    const [moved] = /[\d.]+ .iB/.exec(proxy.said()) ?? []
    say(`frozen for ${(frozenTime / 1e6).toFixed(3)} s while ${moved} moved; no image touched a disk`)
    if (checked !== `all ${MIB} MiB ok`) process.exitCode = 1
  } finally {
    if (existsSync(`/proc/${proc.pid}`)) process.kill(proc.pid as number, 'SIGKILL')
    proxy.stop()
    cache.stop()
  }
}

try {
  await migrate(findCriu())
} catch (error) {
  if ((error as { code?: string }).code !== 'CRIU') throw error
  say(`demo: ${(error as Error).message}: showing the way of recorded images instead of a live process`)
  const images = join(root, 'fixtures', 'images')
  await shell(
    `dump-to-stdout -v --from-dir ${images} | restore-from-socket -v --from - --to-dir ${join(folder, 'images')}`,
  )
  await shell(`diff -r ${images} ${join(folder, 'images')} && echo "all images arrived, byte for byte"`)
} finally {
  rmSync(folder, { recursive: true, force: true })
}

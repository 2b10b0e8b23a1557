/**
 * Two hosts and a long cable between them, made here: two network namespaces without a name, a device in each
 * (`openTun`), and a program that carries their packets (wire-delay.ts). The rate is a token bucket of the kernel (tc
 * tbf) at each end. All of it is gone when its descriptors are closed, whatever ends this process; nothing outside of
 * the namespaces changes.
 *
 * Refused: a relay of bytes. It would end TCP in the middle, and a loss would cost the short round trip to the relay.
 * The kernel's own netem would do what the program does; many kernels are built without it.
 */
import { execFileSync, type StdioOptions, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, existsSync, writeFileSync } from 'node:fs'
import { extname, join } from 'node:path'
import type { Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { Fault } from '../fault.ts'
import type { Fd } from '../kernel/fd.ts'
import { enterNetwork, newNetwork, openTun, thisNetwork } from '../kernel/network.ts'
import { has } from './machine.ts'
import type { Tally } from './wire-delay.ts'

export interface LinkKind {
  name: string
  /** Mbit/s; as much as the machine carries if undefined. */
  rate: number | undefined
  /** Milliseconds, there and back. */
  roundTrip: number
  /** How many of 1,000 packets are lost, in each direction. */
  loss: number
  /** Bytes that are sent over it if nothing else is said: some seconds' worth. */
  bytes: number
}

const MIB = 2 ** 20

/** The first has no limits: what the machine itself reaches with the two ends and the cable on its processors. */
export const linkKinds: readonly LinkKind[] = [
  { name: 'no limit, no delay', rate: undefined, roundTrip: 0, loss: 0, bytes: 1024 * MIB },
  { name: '10 Gbit/s, 1 ms', rate: 10_000, roundTrip: 1, loss: 0, bytes: 1024 * MIB },
  { name: '1 Gbit/s, 20 ms', rate: 1000, roundTrip: 20, loss: 0, bytes: 512 * MIB },
  { name: '200 Mbit/s, 50 ms, 0.1 % lost', rate: 200, roundTrip: 50, loss: 1, bytes: 64 * MIB },
]

export const SIMULATED_HOW =
  'simulated: two network namespaces, packets carried between tun devices and held back by a program, ' +
  'rate by tc tbf; ' +
  'tcp cubic, buffers as Linux has them (tcp_rmem up to 6 MiB, tcp_wmem up to 4 MiB)'

/** Why links cannot be simulated here. */
export function cannotSimulate(): string | undefined {
  if (process.geteuid?.() !== 0) return 'it needs root'
  if (!existsSync('/dev/net/tun')) return 'there is no /dev/net/tun'
  const missing = ['ip', 'tc'].find((program) => !has(program))
  return missing && `there is no program ${missing} (iproute2)`
}

/** Addresses that belong to nobody (RFC 5737). */
export const [SOURCE, TARGET] = ['192.0.2.1', '192.0.2.2']

/** Throws `IO` where something is missing after all. */
export function simulate(kind: LinkKind) {
  const home = thisNetwork()
  const hosts: ReturnType<typeof makeHost>[] = []
  try {
    const source = makeHost(SOURCE, TARGET, kind)
    hosts.push(source)
    const target = makeHost(TARGET, SOURCE, kind)
    hosts.push(target)
    const program = join(import.meta.dirname, `wire-delay${extname(import.meta.filename)}`)
    const args = [...process.execArgv, program, `${kind.roundTrip / 2}`, `${kind.loss}`]
    const stdio: StdioOptions = ['pipe', 'pipe', 'inherit', source.device, target.device]
    const cable = spawn(process.execPath, args, { stdio })
    const said = text(cable.stdout as Readable)
    const ended = once(cable, 'close')
    return {
      /** This thread, and what it starts, is on that host from here on. */
      enter: (host: 'source' | 'target'): void => enterNetwork(host === 'source' ? source.network : target.network),
      /** Packets so far; and it is over: this thread is where it was before. */
      async end(): Promise<Tally> {
        enterNetwork(home)
        cable.stdin?.end()
        await ended
        closeAll()
        return JSON.parse(await said) as Tally
      },
    }
  } catch (error) {
    enterNetwork(home)
    closeAll()
    throw error
  }

  function closeAll(): void {
    for (const fd of [home, ...hosts.flatMap(({ network, device }) => [network, device])]) closeSync(fd)
  }
}

/** Enough for two packets of 64 KiB, which pass whole where nothing is lost. */
const LARGE_BURST = '256k'
/** Ten real ones: what a program with a timer of 4 ms sends at 200 Mbit/s would be less smooth. */
const SMALL_BURST = '16k'
/** As on a host that nobody has tuned. */
const settings = { tcp_rmem: '4096 131072 6291456', tcp_wmem: '4096 16384 4194304' }

/** A network with one device; this thread is in it afterwards. Where packets are lost they are of the usual size. */
function makeHost(own: string, other: string, { rate, loss }: LinkKind): { network: Fd; device: Fd } {
  const network = newNetwork()
  const device = openTun('ferry0', loss === 0)
  const ip = (...args: string[]): void => ran('ip', args)
  ip('link', 'set', 'lo', 'up')
  ip('address', 'add', own, 'peer', other, 'dev', 'ferry0')
  ip('link', 'set', 'ferry0', 'txqueuelen', '5000', 'up')
  // The system's own choice may be another; only a route can say it for a namespace alone.
  ip('route', 'replace', other, 'dev', 'ferry0', 'src', own, 'congctl', 'cubic')
  if (rate !== undefined) {
    const bucket = ['rate', `${rate}mbit`, 'burst', loss === 0 ? LARGE_BURST : SMALL_BURST, 'latency', '50ms']
    ran('tc', ['qdisc', 'replace', 'dev', 'ferry0', 'root', 'tbf', ...bucket])
  }
  for (const [name, value] of Object.entries(settings)) writeFileSync(`/proc/sys/net/ipv4/${name}`, value)
  return { network, device }
}

function ran(program: string, args: readonly string[]): void {
  try {
    execFileSync(program, args, { stdio: ['ignore', 'ignore', 'pipe'] })
  } catch (cause) {
    throw new Fault('IO', `${program} ${args.join(' ')} failed`, { cause })
  }
}

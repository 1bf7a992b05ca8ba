# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_towline_global_optspecs
    string join \n log-level= log-json h/help V/version
end

function __fish_towline_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_towline_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_towline_using_subcommand
    set -l cmd (__fish_towline_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c towline -n "__fish_towline_needs_command" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_needs_command" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_needs_command" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_needs_command" -s V -l version -d 'Print version'
complete -c towline -n "__fish_towline_needs_command" -f -a "leader" -d 'Run a leader: watch a data directory and serve its log'
complete -c towline -n "__fish_towline_needs_command" -f -a "follower" -d 'Run a follower: keep a directory the same as a leader\'s. An empty directory is filled first'
complete -c towline -n "__fish_towline_needs_command" -f -a "run" -d 'Run in the role that the state directory holds; a new one takes it from the configuration'
complete -c towline -n "__fish_towline_needs_command" -f -a "status" -d 'Show role, positions, lag, followers and what the guarantees are right now'
complete -c towline -n "__fish_towline_needs_command" -f -a "check" -d 'One line and an exit code for cron and Nagios: 0 ok, 1 warning, 2 critical, 3 unknown'
complete -c towline -n "__fish_towline_needs_command" -f -a "pause" -d 'Bring the follower\'s directory to rest on a cut and keep it there; prints which cut'
complete -c towline -n "__fish_towline_needs_command" -f -a "resume" -d 'Go on applying after a pause'
complete -c towline -n "__fish_towline_needs_command" -f -a "wait" -d 'Commit everything the leader\'s directory holds now, and wait until followers have confirmed it. Exit code: 0 replicated, 1 local only, 2 unknown; 10 refused, 64 wrong usage'
complete -c towline -n "__fish_towline_needs_command" -f -a "reload" -d 'Make the daemon read its configuration file again'
complete -c towline -n "__fish_towline_needs_command" -f -a "id" -d 'Show who this node is to its peers: its name, its system, the fingerprint of its key. Makes the key at first'
complete -c towline -n "__fish_towline_needs_command" -f -a "trust" -d 'Trust a peer by the fingerprint of its key, list the peers, or remove one. A running daemon follows at once'
complete -c towline -n "__fish_towline_needs_command" -f -a "sync" -d 'Let a frozen application run although followers are missing, or end that'
complete -c towline -n "__fish_towline_needs_command" -f -a "confirm" -d 'Let a mass delete through that the guard holds'
complete -c towline -n "__fish_towline_needs_command" -f -a "slot" -d 'What followers still need of the log: show it, or change it by hand'
complete -c towline -n "__fish_towline_needs_command" -f -a "restore-point" -d 'Name the state the leader\'s directory has now, as an exact cut; `restore` and `stop_at` find it by that name'
complete -c towline -n "__fish_towline_needs_command" -f -a "restore" -d 'Make a directory of a backup, as it was at a target: a time, a position, a restore point, or the latest. Exit code: 0 done, 1 failed, 64 wrong usage'
complete -c towline -n "__fish_towline_needs_command" -f -a "resync" -d 'Make the follower\'s directory equal to its upstream\'s now; only what differs is moved'
complete -c towline -n "__fish_towline_needs_command" -f -a "promote" -d 'Make the follower the leader of a new timeline: it replays the log it has, captures its own directory from there on, and serves the other followers. Make sure first that the old leader is down, or can\'t be reached by its application'
complete -c towline -n "__fish_towline_needs_command" -f -a "rewind" -d 'Make a node that another one has left behind, as the old leader after a promotion, a follower of that one. What only it has is kept in a bundle; only what differs is moved. The daemon does it if it runs, else this command; it can be repeated. Exit code 0 also when there is nothing to do'
complete -c towline -n "__fish_towline_needs_command" -f -a "lost-writes" -d 'Changes that were left behind by a promotion, and are kept: list them, or lay them out as files'
complete -c towline -n "__fish_towline_needs_command" -f -a "switchover" -d 'Make a follower the leader and this leader its follower, on purpose and without loss: the application is stopped, the follower takes all there is, and leads; on any failure before that everything goes on as it was. Exit code: 0 done, 10 refused, 9 a node did not answer or time was over, 64 wrong usage'
complete -c towline -n "__fish_towline_needs_command" -f -a "basebackup" -d 'Take a base backup from a running node. Exit code: 0 complete, 3 complete but no exact cut, 1 failed, 64 wrong usage'
complete -c towline -n "__fish_towline_needs_command" -f -a "combine" -d 'Make one full backup of a full one and the incremental ones that stand on it. Exit code: 0 done, 1 failed, 64 wrong usage'
complete -c towline -n "__fish_towline_needs_command" -f -a "archive" -d 'What an archive holds: list it, check it, remove what is not to be kept'
complete -c towline -n "__fish_towline_needs_command" -f -a "verify" -d 'Check a base backup, a state directory or an archive: names, sizes, SHA-256, log and catalog. All that is wrong is found in one run. Exit code: 0 good, 1 problems, 64 wrong usage'
complete -c towline -n "__fish_towline_needs_command" -f -a "history" -d 'Print the history of the node\'s timeline: where it and those before it branched off, when, by whom and why'
complete -c towline -n "__fish_towline_needs_command" -f -a "log" -d 'Read log segments offline'
complete -c towline -n "__fish_towline_needs_command" -f -a "config" -d 'Check or show the configuration'
complete -c towline -n "__fish_towline_needs_command" -f -a "demo" -d 'A leader, two followers and a workload in a temporary directory; compares everything at the end'
complete -c towline -n "__fish_towline_using_subcommand leader" -l config -d 'Configuration file' -r -F
complete -c towline -n "__fish_towline_using_subcommand leader" -l data -d 'Data directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand leader" -l state -d 'State directory, towline\'s own' -r -F
complete -c towline -n "__fish_towline_using_subcommand leader" -l listen -d 'Serve followers on this address. A port of 0 takes any, which the log and `towline status` name' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l http -d 'Serve /metrics and the pages for load balancers on this address' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l name -d 'Name of this node among its peers' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l exclude -d 'Glob pattern of paths not to replicate; may be repeated' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l freeze -d 'How to stop the application for a cut: cgroup:PATH, unit:NAME or pid:FILE' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l max-freeze -d 'Longest freeze' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l max-cut-delay -d 'How long a pass tries for an exact cut' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l rescan-interval -d 'Time between full stat scans' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l peer-timeout -d 'A peer that sends nothing for this long is given up' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l segment-timeout -d 'A non-empty segment is sealed after this time' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l scrub-rate -d 'Bytes a second of background hashing' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l compression -d 'zstd level of the log' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l synchronous-followers -d 'Who has to confirm changes: \'ANY n (..)\', \'FIRST n (..)\', a plain list, \'*\'' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l synchronous-level -d 'What they have to have done' -r -f -a "write\t'Its operating system has it: survives the death of the follower\'s process'
flush\t'It is durable in its log'
apply\t'It is visible in its directory'"
complete -c towline -n "__fish_towline_using_subcommand leader" -l sync-loss -d 'What happens while too few of them are there' -r -f -a "report\t'It is said; callers that wait for confirmations wait'
freeze\t'The application is frozen until they are there again'"
complete -c towline -n "__fish_towline_using_subcommand leader" -l max-slot-keep -d 'Segments of log that are held for a follower that is away; 0: none' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l max-slot-disk -d 'Most room for log that only slots hold: a size, or a share like 25%' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l keep-segments -d 'Newest segments of log that are always kept' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l min-free-disk -d 'Free disk below which log that only slots hold is given up: a size, or a share like 5%; 0: never' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l slot-idle-timeout -d 'The slot of a follower that is away for this long is lost; 0s: never by time' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l archive -d 'Put sealed segments into this archive: file:///DIRECTORY, s3://BUCKET/PREFIX, gs://, az://' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l max-archive-keep -d 'Most room for log that waits for the archive only, like 10G or 25%' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l tls -d 'When connections between nodes are encrypted' -r -f -a "auto\t'Whenever there is a network, or somebody to know'
on\t'Always'
off\t'Never, over any network'"
complete -c towline -n "__fish_towline_using_subcommand leader" -l tls-cert -d 'Certificate of this node, PEM' -r -F
complete -c towline -n "__fish_towline_using_subcommand leader" -l tls-key -d 'Its private key, PEM' -r -F
complete -c towline -n "__fish_towline_using_subcommand leader" -l tls-ca -d 'Certificates of CAs that vouch for nodes, PEM' -r -F
complete -c towline -n "__fish_towline_using_subcommand leader" -l tls-crl -d 'Revocation lists of those CAs, PEM' -r -F
complete -c towline -n "__fish_towline_using_subcommand leader" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand leader" -l force -d 'Lead, whatever the other nodes of the list say. If one of them was promoted, or this node is fenced, it leads on a new timeline, and the other one is fenced'
complete -c towline -n "__fish_towline_using_subcommand leader" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand leader" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c towline -n "__fish_towline_using_subcommand follower" -l config -d 'Configuration file' -r -F
complete -c towline -n "__fish_towline_using_subcommand follower" -l data -d 'Data directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand follower" -l state -d 'State directory, towline\'s own' -r -F
complete -c towline -n "__fish_towline_using_subcommand follower" -l listen -d 'Serve followers on this address. A port of 0 takes any, which the log and `towline status` name' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l http -d 'Serve /metrics and the pages for load balancers on this address' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l name -d 'Name of this node among its peers' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l exclude -d 'Glob pattern of paths not to replicate; may be repeated' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l freeze -d 'How to stop the application for a cut: cgroup:PATH, unit:NAME or pid:FILE' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l max-freeze -d 'Longest freeze' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l max-cut-delay -d 'How long a pass tries for an exact cut' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l rescan-interval -d 'Time between full stat scans' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l peer-timeout -d 'A peer that sends nothing for this long is given up' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l segment-timeout -d 'A non-empty segment is sealed after this time' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l scrub-rate -d 'Bytes a second of background hashing' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l compression -d 'zstd level of the log' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l synchronous-followers -d 'Who has to confirm changes: \'ANY n (..)\', \'FIRST n (..)\', a plain list, \'*\'' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l synchronous-level -d 'What they have to have done' -r -f -a "write\t'Its operating system has it: survives the death of the follower\'s process'
flush\t'It is durable in its log'
apply\t'It is visible in its directory'"
complete -c towline -n "__fish_towline_using_subcommand follower" -l sync-loss -d 'What happens while too few of them are there' -r -f -a "report\t'It is said; callers that wait for confirmations wait'
freeze\t'The application is frozen until they are there again'"
complete -c towline -n "__fish_towline_using_subcommand follower" -l max-slot-keep -d 'Segments of log that are held for a follower that is away; 0: none' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l max-slot-disk -d 'Most room for log that only slots hold: a size, or a share like 25%' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l keep-segments -d 'Newest segments of log that are always kept' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l min-free-disk -d 'Free disk below which log that only slots hold is given up: a size, or a share like 5%; 0: never' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l slot-idle-timeout -d 'The slot of a follower that is away for this long is lost; 0s: never by time' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l archive -d 'Put sealed segments into this archive: file:///DIRECTORY, s3://BUCKET/PREFIX, gs://, az://' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l max-archive-keep -d 'Most room for log that waits for the archive only, like 10G or 25%' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l tls -d 'When connections between nodes are encrypted' -r -f -a "auto\t'Whenever there is a network, or somebody to know'
on\t'Always'
off\t'Never, over any network'"
complete -c towline -n "__fish_towline_using_subcommand follower" -l tls-cert -d 'Certificate of this node, PEM' -r -F
complete -c towline -n "__fish_towline_using_subcommand follower" -l tls-key -d 'Its private key, PEM' -r -F
complete -c towline -n "__fish_towline_using_subcommand follower" -l tls-ca -d 'Certificates of CAs that vouch for nodes, PEM' -r -F
complete -c towline -n "__fish_towline_using_subcommand follower" -l tls-crl -d 'Revocation lists of those CAs, PEM' -r -F
complete -c towline -n "__fish_towline_using_subcommand follower" -l leader -d 'Address of the node to follow; several, with commas between them, are tried in turn' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l upstream-role -d 'Which of them to follow' -r -f -a "any\t'Whichever answers first'
leader\t'The leader only'
follower\t'Followers only'
prefer-follower\t'A follower; the leader where none of them can be had'"
complete -c towline -n "__fish_towline_using_subcommand follower" -l apply-cuts -d 'Cuts to apply' -r -f -a "exact\t'Only states that the leader\'s directory really had'
file\t'Every commit: for applications whose files don\'t depend on each other'"
complete -c towline -n "__fish_towline_using_subcommand follower" -l apply-delay -d 'How old a commit must be before it is shown' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l stop-at -d 'Stop replay there: a position, a time with its zone, `exact`, the first exact cut, or the name of a restore point' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l stop-action -d 'What to do there' -r -f -a "pause\t'Stays there, and takes log, until it is told to go on'
exit\t'The process ends, with exit code 0'"
complete -c towline -n "__fish_towline_using_subcommand follower" -l scrub-interval -d 'All contents are compared with their hashes once in this time; 0s: never' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l local-edits -d 'What to do about changes made in this follower\'s directory' -r -f -a "refuse\t'Stop replay and name the path'
overwrite\t'Report it and write the leader\'s state over it'"
complete -c towline -n "__fish_towline_using_subcommand follower" -l resync -d 'What to do when the log does not go on at the leader: resync by itself, or wait for `towline resync`' -r -f -a "auto\t'It is made equal to the upstream again; only what differs is moved'
ask\t'It says so and waits for `towline resync`'"
complete -c towline -n "__fish_towline_using_subcommand follower" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand follower" -l adopt -d 'At the first start take over what the data directory holds, and make it equal to the leader\'s'
complete -c towline -n "__fish_towline_using_subcommand follower" -l paused -d 'Recover to a cut and stay there until `towline resume`'
complete -c towline -n "__fish_towline_using_subcommand follower" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand follower" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c towline -n "__fish_towline_using_subcommand run" -l config -d 'Configuration file' -r -F
complete -c towline -n "__fish_towline_using_subcommand run" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand run" -l force -d 'A leader leads, whatever the other nodes of the list say, as with `towline leader --force`'
complete -c towline -n "__fish_towline_using_subcommand run" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand run" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand status" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand status" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand status" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand status" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand status" -l watch -d 'Look again and again, each second or at this interval: on a terminal a live page with rates, until Ctrl-C; elsewhere one block after another' -r
complete -c towline -n "__fish_towline_using_subcommand status" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand status" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand status" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand status" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand check" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand check" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand check" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand check" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand check" -l max-lag -d 'Age of the oldest commit that is not applied; on a leader for each attached follower. What a follower holds back by its `apply_delay` is added to it, on the follower and on the leader' -r
complete -c towline -n "__fish_towline_using_subcommand check" -l max-lag-bytes -d 'Bytes of log that are not applied' -r
complete -c towline -n "__fish_towline_using_subcommand check" -l max-exact-age -d 'How long commits may wait for an exact cut' -r
complete -c towline -n "__fish_towline_using_subcommand check" -l min-followers -d 'Fewer attached followers than this are a problem' -r
complete -c towline -n "__fish_towline_using_subcommand check" -l max-away -d 'How long a follower that has a slot here may be away: one that never comes back holds log until its slot is lost' -r
complete -c towline -n "__fish_towline_using_subcommand check" -l max-slot-bytes -d 'Bytes of log that one slot may hold' -r
complete -c towline -n "__fish_towline_using_subcommand check" -l max-backup-age -d 'Age of the newest base backup; none at all is critical' -r
complete -c towline -n "__fish_towline_using_subcommand check" -l max-archive-age -d 'How long sealed log may wait for the archive' -r
complete -c towline -n "__fish_towline_using_subcommand check" -l min-free-disk -d 'Room that has to be left on the file systems of the state and the data directory: a size, or a share like 5%' -r
complete -c towline -n "__fish_towline_using_subcommand check" -l min-certificate-days -d 'Days that the node\'s certificate has to be good for, if it ends' -r
complete -c towline -n "__fish_towline_using_subcommand check" -l accept -d 'A problem that is known and is none here, by its word; may be repeated' -r -f -a "archive-failing\t''
archive-gap\t''
gap\t''
skipped\t''
unreadable\t''
hidden\t''
unwatched\t''
edits\t''
inexact\t''
certificate\t''
follower-help\t''
paused\t''
starting\t''
sync\t''
released\t''
away\t''
slot-lost\t''
lost-logs\t''"
complete -c towline -n "__fish_towline_using_subcommand check" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand check" -l json -d 'Print the verdict as JSON instead of the line'
complete -c towline -n "__fish_towline_using_subcommand check" -l sync-state -d 'A missing quorum of synchronous followers is critical instead of a warning, and so is a leader without any'
complete -c towline -n "__fish_towline_using_subcommand check" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand check" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand pause" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand pause" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand pause" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand pause" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand pause" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand pause" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand pause" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand pause" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand resume" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand resume" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand resume" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand resume" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand resume" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand resume" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand resume" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand resume" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand wait" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand wait" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand wait" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand wait" -l level -d 'What followers have to have done; default: `synchronous_level` of the configuration. On a follower, what it has to have done itself; default: apply' -r -f -a "write\t'Its operating system has it: survives the death of the follower\'s process'
flush\t'It is durable in its log'
apply\t'It is visible in its directory'"
complete -c towline -n "__fish_towline_using_subcommand wait" -l timeout -d 'Give up after this time: 1ms to 24h; default: 5s' -r
complete -c towline -n "__fish_towline_using_subcommand wait" -l for -d 'Who has to confirm, like \'ANY 1 (a, b)\'; default: `synchronous_followers` of the configuration, and where that is empty every follower attached' -r
complete -c towline -n "__fish_towline_using_subcommand wait" -l lsn -d 'Wait for this position instead of what the directory holds. On a follower: until it is there itself' -r
complete -c towline -n "__fish_towline_using_subcommand wait" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand wait" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand wait" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand wait" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c towline -n "__fish_towline_using_subcommand reload" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand reload" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand reload" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand reload" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand reload" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand reload" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand reload" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand reload" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand id" -l state -d 'State directory of the node; default: that of its configuration. Made if it has to be and is not there' -r -F
complete -c towline -n "__fish_towline_using_subcommand id" -l config -d 'Configuration file of the node' -r -F
complete -c towline -n "__fish_towline_using_subcommand id" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand id" -l renew -d 'Make a new certificate of the same key: the fingerprint stays. `towline reload` puts it in force'
complete -c towline -n "__fish_towline_using_subcommand id" -l new-key -d 'With --renew: make a new key. Peers have to trust its fingerprint before `towline reload` puts it in force'
complete -c towline -n "__fish_towline_using_subcommand id" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand id" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand id" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand trust" -l state -d 'State directory of the node; default: that of its configuration. Made if it has to be and is not there' -r -F
complete -c towline -n "__fish_towline_using_subcommand trust" -l config -d 'Configuration file of the node' -r -F
complete -c towline -n "__fish_towline_using_subcommand trust" -l role -d 'What the peer is to this node; may be repeated. Default: follower and leader, so that either may lead' -r -f -a "follower\t'It may follow this node'
leader\t'This node may follow it'
backup\t'It may take backups'
monitor\t'It may ask for status'
admin\t'It may ask for everything'"
complete -c towline -n "__fish_towline_using_subcommand trust" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand trust" -l list -d 'Show the peers that were trusted by command; with --config those of the file, too'
complete -c towline -n "__fish_towline_using_subcommand trust" -l remove -d 'Trust the peer no more, or only that key of it; its connection ends at once'
complete -c towline -n "__fish_towline_using_subcommand trust" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand trust" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand trust" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c towline -n "__fish_towline_using_subcommand sync; and not __fish_seen_subcommand_from release resume" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand sync; and not __fish_seen_subcommand_from release resume" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand sync; and not __fish_seen_subcommand_from release resume" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand sync; and not __fish_seen_subcommand_from release resume" -f -a "release" -d 'Let it run for a time, whatever followers are there'
complete -c towline -n "__fish_towline_using_subcommand sync; and not __fish_seen_subcommand_from release resume" -f -a "resume" -d 'End the release: it is frozen again while followers are missing'
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from release" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from release" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from release" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from release" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from release" -l for -d 'How long; default: 1h. A restart of the daemon ends it' -r
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from release" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from release" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from release" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from release" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from resume" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from resume" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from resume" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from resume" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from resume" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from resume" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from resume" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand sync; and __fish_seen_subcommand_from resume" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand confirm" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand confirm" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand confirm" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand confirm" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand confirm" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand confirm" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand confirm" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand confirm" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand slot; and not __fish_seen_subcommand_from list show create drop advance" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand slot; and not __fish_seen_subcommand_from list show create drop advance" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand slot; and not __fish_seen_subcommand_from list show create drop advance" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand slot; and not __fish_seen_subcommand_from list show create drop advance" -f -a "list" -d 'Print every slot: what it holds, and how much longer'
complete -c towline -n "__fish_towline_using_subcommand slot; and not __fish_seen_subcommand_from list show create drop advance" -f -a "show" -d 'Print one slot; there being none is an error'
complete -c towline -n "__fish_towline_using_subcommand slot; and not __fish_seen_subcommand_from list show create drop advance" -f -a "create" -d 'Make a slot for a follower that is yet to come'
complete -c towline -n "__fish_towline_using_subcommand slot; and not __fish_seen_subcommand_from list show create drop advance" -f -a "drop" -d 'Take away the slot of a follower that does not come back'
complete -c towline -n "__fish_towline_using_subcommand slot; and not __fish_seen_subcommand_from list show create drop advance" -f -a "advance" -d 'Move a slot forward: log before the position is no longer held by it'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from list" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from list" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from list" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from list" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from list" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from list" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from show" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from show" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from show" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from show" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from show" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from show" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from show" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from create" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from create" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from create" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from create" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from create" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from create" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from create" -l reserve -d 'Hold log from now on instead of from the follower\'s first connection on'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from create" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from create" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from drop" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from drop" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from drop" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from drop" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from drop" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from drop" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from drop" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from drop" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from advance" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from advance" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from advance" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from advance" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from advance" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from advance" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from advance" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand slot; and __fish_seen_subcommand_from advance" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand restore-point" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand restore-point" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand restore-point" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand restore-point" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand restore-point" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand restore-point" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand restore-point" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand restore-point" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand restore" -l from -d 'An archive (file:///DIR, s3://BUCKET/PREFIX, ..., or its directory): of its backups the newest one is taken that ended at or before the target, and its log is used, too. Or one backup: the directory that holds its manifest.json, a tar, compressed with zstd or not, or `-`, a tar on standard input' -r
complete -c towline -n "__fish_towline_using_subcommand restore" -l backup -d 'The label of a backup of the archive, instead of the newest one that fits' -r
complete -c towline -n "__fish_towline_using_subcommand restore" -l base -d 'A backup that an incremental --from stands on, outside of an archive; may be repeated, in any order' -r -F
complete -c towline -n "__fish_towline_using_subcommand restore" -l target -d 'To which state: `latest`, a time like \'2026-11-24 14:05\' by the clock of this machine, or with its zone like 2026-11-25T14:05:00+01:00, a position like 0/16B3748, the name of a restore point, or `exact`, the first exact cut' -r
complete -c towline -n "__fish_towline_using_subcommand restore" -l out -d 'The directory that is made: new or empty' -r -F
complete -c towline -n "__fish_towline_using_subcommand restore" -l log -d 'Log after the backup: an archive (file:///DIR, s3://BUCKET/PREFIX, ...), a state directory, or a directory of segments; may be repeated' -r
complete -c towline -n "__fish_towline_using_subcommand restore" -l target-timeline -d 'Which timeline is followed, where the log branches: `latest` is the newest that the archives and state directories know, `current` is that of the backup, and a number is that one' -r
complete -c towline -n "__fish_towline_using_subcommand restore" -l state -d 'The state directory of that follower, or leader: new or empty' -r -F
complete -c towline -n "__fish_towline_using_subcommand restore" -l copy-mode -d 'How a file comes there that the backup holds as a file: `auto` shares its blocks where the file system can (xfs, btrfs; one for both), `copy` writes its bytes, `clone` shares or fails' -r
complete -c towline -n "__fish_towline_using_subcommand restore" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand restore" -l as-follower -d 'Keep what a follower needs: `towline follower` on --out and --state goes on from there'
complete -c towline -n "__fish_towline_using_subcommand restore" -l as-leader -d 'Begin a new timeline at the target: `towline leader` on --out and --state leads it'
complete -c towline -n "__fish_towline_using_subcommand restore" -l delta -d 'Make --out equal if it holds something: files that are there are compared, and only blocks that differ are written. What the backup excludes is left alone. Until it is whole it is called OUT.restoring'
complete -c towline -n "__fish_towline_using_subcommand restore" -l allow-gap -d 'Where the history around the target is approximate, or the log has a hole before the latest state, the last exact cut before it will do'
complete -c towline -n "__fish_towline_using_subcommand restore" -l dry-run -d 'Only show what would be done'
complete -c towline -n "__fish_towline_using_subcommand restore" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand restore" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand restore" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand resync" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand resync" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand resync" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand resync" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand resync" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand resync" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand resync" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand resync" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand promote" -l to -d 'Which cut the directory is to stand on; default: exact, or newest with `apply_cuts = "file"`. What the log has after it is put aside' -r -f -a "exact\t'The last exact cut of its log: a state that the directory had'
newest\t'The last complete change set: the newest data, though files may be of different instants'"
complete -c towline -n "__fish_towline_using_subcommand promote" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand promote" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand promote" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand promote" -l timeout -d 'Give up after this time' -r
complete -c towline -n "__fish_towline_using_subcommand promote" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand promote" -l dry-run -d 'Only show what would be done'
complete -c towline -n "__fish_towline_using_subcommand promote" -l wait -d 'Return when the node serves as the leader'
complete -c towline -n "__fish_towline_using_subcommand promote" -l force -d 'For a leader that is fenced, or that another one leads apart from: it leads on a new timeline, with a number above all that it has heard of, and the other one is fenced. What the other one has is lost then; stop its application first'
complete -c towline -n "__fish_towline_using_subcommand promote" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand promote" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand promote" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c towline -n "__fish_towline_using_subcommand rewind" -l state -d 'State directory of the node, whether its daemon runs or not' -r -F
complete -c towline -n "__fish_towline_using_subcommand rewind" -l config -d 'Configuration file of the node. Without one a node that is stopped is found by --state alone' -r -F
complete -c towline -n "__fish_towline_using_subcommand rewind" -l leader -d 'The node that leads, or several with commas between; default: those of the key `leader`. One that follows it will do' -r
complete -c towline -n "__fish_towline_using_subcommand rewind" -l data -d 'Data directory of a node that is stopped; default: the one that it ran with' -r -F
complete -c towline -n "__fish_towline_using_subcommand rewind" -l timeout -d 'How long a running daemon is waited for; it goes on after that' -r
complete -c towline -n "__fish_towline_using_subcommand rewind" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand rewind" -l dry-run -d 'Only show what would be done'
complete -c towline -n "__fish_towline_using_subcommand rewind" -l confirm -d 'Half of the directory, or more, is gone, or what can\'t be logged may go, and that is as it should be'
complete -c towline -n "__fish_towline_using_subcommand rewind" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand rewind" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand rewind" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and not __fish_seen_subcommand_from list export" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and not __fish_seen_subcommand_from list export" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and not __fish_seen_subcommand_from list export" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and not __fish_seen_subcommand_from list export" -f -a "list" -d 'Show the bundles that the node has kept'
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and not __fish_seen_subcommand_from list export" -f -a "export" -d 'Lay out every file of a bundle that was created or changed, as the log tells it: whole, or the stretches that changed'
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from list" -l state -d 'State directory of the node, whether its daemon runs or not' -r -F
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from list" -l config -d 'Configuration file of the node, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from list" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from list" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from export" -l state -d 'State directory of the node, for a number' -r -F
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from export" -l config -d 'Configuration file of the node, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from export" -l out -d 'The directory that is made, new or empty: the files are below `files` in it, and `list.txt` says what they are' -r -F
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from export" -l over -d 'Fill the rest of files of which only stretches are known from this directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from export" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from export" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from export" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand lost-writes; and __fish_seen_subcommand_from export" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand switchover" -l to -d 'The name of the follower that is to lead' -r
complete -c towline -n "__fish_towline_using_subcommand switchover" -l state -d 'State directory of the daemon' -r -F
complete -c towline -n "__fish_towline_using_subcommand switchover" -l socket -d 'Control socket of the daemon; default: `control.sock` in the state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand switchover" -l config -d 'Configuration file of the daemon, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand switchover" -l timeout -d 'Put everything back when the other is not about to lead after this time' -r
complete -c towline -n "__fish_towline_using_subcommand switchover" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand switchover" -l dry-run -d 'Only look whether anything stands against it'
complete -c towline -n "__fish_towline_using_subcommand switchover" -l stopped -d 'The application is stopped already: neither on_demote nor a freeze is needed'
complete -c towline -n "__fish_towline_using_subcommand switchover" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand switchover" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand switchover" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l leader -d 'The node to read: a leader, or a follower' -r
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l out -d 'The directory that becomes the backup: new or empty. `-`: the backup is one tar stream on standard output. An address like file:///DIR or s3://BUCKET/PREFIX: it goes into that archive' -r -F
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l incremental -d 'Take what has changed since this backup only, as packs: its manifest, its directory, or URL#LABEL of one in an archive. It is not changed, and the new one can\'t be restored without it' -r -F
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l label -d 'Name of the backup; default: the time at which it begins' -r
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l exact-timeout -d 'How long to wait for an exact cut, once everything else is there. Without one the backup ends on a cut of files, and the exit code is 3' -r
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l max-rate -d 'Take at most so many bytes a second from the node; 0: as many as come' -r
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l compress -d 'Compress the stream: none, zstd, or zstd:LEVEL' -r
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l scratch -d 'Directory in which the log of a stream, or of a backup in an archive, waits for its turn; default: $TMPDIR, or /tmp' -r -F
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l retry-timeout -d 'After so long without a connection to the node the backup fails' -r
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l peer-timeout -d 'A node that sends nothing for this long is given up' -r
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l name -d 'The name by which the node trusts this side; default: that of the state directory, or of the host' -r
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l state -d 'Directory of the key and of the peers of this side, as `towline id` and `towline trust` keep them; needed for TLS' -r -F
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l config -d 'Configuration file: its name, state directory, peers and TLS keys count here' -r -F
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l tls -d 'When connections between nodes are encrypted' -r -f -a "auto\t'Whenever there is a network, or somebody to know'
on\t'Always'
off\t'Never, over any network'"
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l tls-cert -d 'Certificate of this node, PEM' -r -F
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l tls-key -d 'Its private key, PEM' -r -F
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l tls-ca -d 'Certificates of CAs that vouch for nodes, PEM' -r -F
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l tls-crl -d 'Revocation lists of those CAs, PEM' -r -F
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l progress -d 'Show how far it is on standard error: a bar on a terminal, lines elsewhere'
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l keep-partial -d 'Keep what was made when the backup fails, for --resume'
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l resume -d 'Go on with a backup that failed with --keep-partial, or whose host did. What is there is checked again'
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand basebackup" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand basebackup" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c towline -n "__fish_towline_using_subcommand combine" -l out -d 'The directory that becomes the full backup: new or empty' -r -F
complete -c towline -n "__fish_towline_using_subcommand combine" -l label -d 'Its label; default: that of the newest member' -r
complete -c towline -n "__fish_towline_using_subcommand combine" -l copy-mode -d 'How a file comes there that a member holds as a whole: `copy`; `clone`, where the file system can share blocks (xfs, btrfs); or `link`, a hard link: then both backups hold one and the same file, and whatever changes it changes both' -r
complete -c towline -n "__fish_towline_using_subcommand combine" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand combine" -l dry-run -d 'Only show what would be done'
complete -c towline -n "__fish_towline_using_subcommand combine" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand combine" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand combine" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand archive; and not __fish_seen_subcommand_from list verify prune pin unpin" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and not __fish_seen_subcommand_from list verify prune pin unpin" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand archive; and not __fish_seen_subcommand_from list verify prune pin unpin" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand archive; and not __fish_seen_subcommand_from list verify prune pin unpin" -f -a "list" -d 'Print what it holds: backups, ranges of log, gaps between them'
complete -c towline -n "__fish_towline_using_subcommand archive; and not __fish_seen_subcommand_from list verify prune pin unpin" -f -a "verify" -d 'Read every object and print what is wrong. Exit code: 0 good, 1 something is wrong'
complete -c towline -n "__fish_towline_using_subcommand archive; and not __fish_seen_subcommand_from list verify prune pin unpin" -f -a "prune" -d 'Remove backups that are not to be kept, and log that no kept one needs. The plan is printed first'
complete -c towline -n "__fish_towline_using_subcommand archive; and not __fish_seen_subcommand_from list verify prune pin unpin" -f -a "pin" -d 'Keep a backup, and what it stands on, whatever `prune` is told'
complete -c towline -n "__fish_towline_using_subcommand archive; and not __fish_seen_subcommand_from list verify prune pin unpin" -f -a "unpin" -d 'Take the pin away'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from list" -l archive -d 'Address: file:///DIRECTORY or its path, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from list" -l config -d 'Configuration file of a node, whose key `archive` names it' -r -F
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from list" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from list" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from verify" -l backup -d 'Read this backup only: no log, and no other backup' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from verify" -l archive -d 'Address: file:///DIRECTORY or its path, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from verify" -l config -d 'Configuration file of a node, whose key `archive` names it' -r -F
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from verify" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from verify" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from verify" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from verify" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from prune" -l archive -d 'Address: file:///DIRECTORY or its path, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from prune" -l config -d 'Configuration file of a node, whose key `archive` names it' -r -F
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from prune" -l keep-full -d 'Keep the newest N full backups, and what stands on them' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from prune" -l keep-days -d 'Keep what is needed to restore any moment of the last D days' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from prune" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from prune" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from prune" -l dry-run -d 'Print the plan and remove nothing'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from prune" -l yes -d 'Do not ask'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from prune" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from prune" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from pin" -l archive -d 'Address: file:///DIRECTORY or its path, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from pin" -l config -d 'Configuration file of a node, whose key `archive` names it' -r -F
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from pin" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from pin" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from pin" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from pin" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from unpin" -l archive -d 'Address: file:///DIRECTORY or its path, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from unpin" -l config -d 'Configuration file of a node, whose key `archive` names it' -r -F
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from unpin" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from unpin" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from unpin" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand archive; and __fish_seen_subcommand_from unpin" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand verify" -s i -l ignore -d 'A path below it of which nothing is to be heard, like data/notes; may be repeated' -r -F
complete -c towline -n "__fish_towline_using_subcommand verify" -l scratch -d 'Where the scratch directory is made; default: TMPDIR, or /tmp' -r -F
complete -c towline -n "__fish_towline_using_subcommand verify" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand verify" -s e -l exit-on-error -d 'End after the first problem'
complete -c towline -n "__fish_towline_using_subcommand verify" -s s -l no-content -d 'Compare names, kinds and sizes only: nothing but the manifest is read'
complete -c towline -n "__fish_towline_using_subcommand verify" -s n -l no-log -d 'Don\'t look into the log'
complete -c towline -n "__fish_towline_using_subcommand verify" -l replay -d 'Restore the backup into a scratch directory, when nothing else is wrong with it, and compare what is there then with the tree that its log leads to. Needs as much room as the data, and the backup as a directory'
complete -c towline -n "__fish_towline_using_subcommand verify" -s q -l quiet -d 'Print problems only'
complete -c towline -n "__fish_towline_using_subcommand verify" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand verify" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand verify" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand history" -l state -d 'State directory of the node, whether its daemon runs or not' -r -F
complete -c towline -n "__fish_towline_using_subcommand history" -l config -d 'Configuration file of the node, which names its state directory' -r -F
complete -c towline -n "__fish_towline_using_subcommand history" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand history" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand history" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand history" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand log; and not __fish_seen_subcommand_from dump verify stat" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand log; and not __fish_seen_subcommand_from dump verify stat" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand log; and not __fish_seen_subcommand_from dump verify stat" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand log; and not __fish_seen_subcommand_from dump verify stat" -f -a "dump" -d 'Print the records of segments'
complete -c towline -n "__fish_towline_using_subcommand log; and not __fish_seen_subcommand_from dump verify stat" -f -a "verify" -d 'Check checksums, the hash chain and the record grammar of segments'
complete -c towline -n "__fish_towline_using_subcommand log; and not __fish_seen_subcommand_from dump verify stat" -f -a "stat" -d 'Print what takes the space in segments'
complete -c towline -n "__fish_towline_using_subcommand log; and __fish_seen_subcommand_from dump" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand log; and __fish_seen_subcommand_from dump" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand log; and __fish_seen_subcommand_from dump" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand log; and __fish_seen_subcommand_from dump" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand log; and __fish_seen_subcommand_from verify" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand log; and __fish_seen_subcommand_from verify" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand log; and __fish_seen_subcommand_from verify" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand log; and __fish_seen_subcommand_from verify" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand log; and __fish_seen_subcommand_from stat" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand log; and __fish_seen_subcommand_from stat" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand log; and __fish_seen_subcommand_from stat" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand log; and __fish_seen_subcommand_from stat" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand config; and not __fish_seen_subcommand_from check show" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand config; and not __fish_seen_subcommand_from check show" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand config; and not __fish_seen_subcommand_from check show" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand config; and not __fish_seen_subcommand_from check show" -f -a "check" -d 'Check a file: prints nothing and exits 0, or names what a start on this host would refuse, and the remedy'
complete -c towline -n "__fish_towline_using_subcommand config; and not __fish_seen_subcommand_from check show" -f -a "show" -d 'Print the configuration in force, defaults included'
complete -c towline -n "__fish_towline_using_subcommand config; and __fish_seen_subcommand_from check" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand config; and __fish_seen_subcommand_from check" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand config; and __fish_seen_subcommand_from check" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand config; and __fish_seen_subcommand_from show" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand config; and __fish_seen_subcommand_from show" -l json -d 'Print JSON'
complete -c towline -n "__fish_towline_using_subcommand config; and __fish_seen_subcommand_from show" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand config; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c towline -n "__fish_towline_using_subcommand demo" -l duration -d 'How long the workload runs' -r
complete -c towline -n "__fish_towline_using_subcommand demo" -l log-level -d 'Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key log_level of the configuration, or info' -r
complete -c towline -n "__fish_towline_using_subcommand demo" -l keep -d 'Keep the temporary directory and print where it is'
complete -c towline -n "__fish_towline_using_subcommand demo" -l log-json -d 'Write the log as JSON lines: timestamp, level, target, message, and what else is known'
complete -c towline -n "__fish_towline_using_subcommand demo" -s h -l help -d 'Print help'

"""vsm under systemd: units, hardening, sd_notify, and Ubuntu's AppArmor."""
